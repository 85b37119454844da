"""Weights written for Keras, for timm and as a run, and loaded again: no bit changes."""

import dataclasses
import functools

import jax
import keras
import numpy as np
import pytest
import safetensors.numpy
from helpers import default_config, random_variables

import xception_flax
from xception_flax import Trained
from xception_flax.base.errors import UserError
from xception_flax.weights.saving import differences

CLASSES = 7


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@functools.cache
def network(name, size=224, **options):
    model = xception_flax.create_model(name, CLASSES, **options)
    config = default_config(model=name, image_size=size)
    return Trained(model, random_variables(model, size), config)


RESNET_50 = {'stages': (3, 4, 6, 3)}


@pytest.mark.parametrize(
    ('name', 'size', 'options', 'application'),
    [
        ('xception', 299, {}, keras.applications.Xception),
        pytest.param(
            'inception_v3', 299, {}, keras.applications.InceptionV3, marks=pytest.mark.slow
        ),
        pytest.param('vgg16', 64, {}, keras.applications.VGG16, marks=pytest.mark.slow),
        pytest.param(
            'resnet152', 64, RESNET_50, keras.applications.ResNet50, marks=pytest.mark.slow
        ),
    ],
)
def test_keras_loads_our_file_and_writes_the_same(name, size, options, application, tmp_path):
    net = network(name, size, **options)
    file = tmp_path / 'ours.weights.h5'
    net.save(file)
    theirs = application(weights=None, classes=CLASSES, input_shape=(size, size, 3))
    theirs.load_weights(file)
    again = tmp_path / 'again.weights.h5'
    theirs.save_weights(again)
    loaded = xception_flax.load(again)
    assert same(loaded.variables, net.variables)
    assert loaded.config.model == name
    assert {p.name for p in tmp_path.iterdir()} == {'ours.weights.h5', 'again.weights.h5'}


@pytest.mark.parametrize(
    ('name', 'size', 'options'),
    [
        ('xception', 299, {'variant': 'timm', 'bn_epsilon': 1e-5}),
        ('inception_v3', 299, {'variant': 'timm'}),
        pytest.param(
            'vgg16', 224, {'batch_norm': True, 'bn_epsilon': 1e-5}, marks=pytest.mark.slow
        ),
        ('resnet152', 64, {'variant': 'timm', 'bn_epsilon': 1e-5, **RESNET_50}),
        pytest.param('xception41', 299, {}, marks=pytest.mark.slow),
        pytest.param('xception71', 299, {}, marks=pytest.mark.slow),
    ],
)
def test_to_the_format_of_timm_and_back_nothing_changes(name, size, options, tmp_path):
    net = network(name, size, **options)
    file = tmp_path / 'ours.safetensors'
    net.save(file)
    loaded = xception_flax.load(file)
    assert same(loaded.variables, net.variables)
    assert loaded.config.model == name
    assert loaded.model == net.model
    loaded.save(tmp_path / 'again.safetensors')
    assert (tmp_path / 'again.safetensors').read_bytes() == file.read_bytes()


def test_to_a_run_and_back_nothing_changes(tmp_path):
    net = network('xception', 299)
    config = net.config.copy_and_resolve_references()
    config.crop_fraction, config.preprocessing = 0.9, 'torch'
    dataclasses.replace(net, config=config).save(tmp_path / 'run')
    loaded = xception_flax.load(tmp_path / 'run')
    assert loaded.model == net.model
    assert same(loaded.variables, net.variables)
    assert (loaded.config.crop_fraction, loaded.config.preprocessing) == (0.9, 'torch')


def test_a_run_gets_a_new_classifier_on_request(tmp_path):
    net = network('xception', 299)
    net.save(tmp_path / 'run')
    other = xception_flax.create_model('xception', 3)
    with pytest.raises(UserError, match=r'logits/kernel is \(2048, 7\), not \(2048, 3\)'):
        xception_flax.load(tmp_path / 'run', model=other)
    tuned = xception_flax.load(tmp_path / 'run', model=other, new_head=True)
    assert tuned.model is other
    assert same(tuned.variables['batch_stats'], net.variables['batch_stats'])
    assert tuned.variables['params']['logits']['kernel'].shape == (2048, 3)


def test_from_kerass_graph_to_timm_and_back_nothing_changes(tmp_path):
    net = network('xception', 299)
    net.save(tmp_path / 'x.safetensors')
    loaded = xception_flax.load(tmp_path / 'x.safetensors')
    assert same(loaded.variables, net.variables)
    assert (loaded.model.variant, loaded.model.bn_epsilon) == ('timm', 1e-5)
    assert differences('x.weights.h5', net.model, net.config) == []
    assert len(differences('x.safetensors', net.model, net.config)) == 2  # padding and epsilon


class TestErrors:
    """Every mistake ends in one line that says what is wrong."""

    def message(self, target, name='xception', size=299, **options):
        with pytest.raises(UserError) as error:
            network(name, size, **options).save(target)
        assert '\n' not in str(error.value)
        return str(error.value)

    def test_a_vgg_of_another_size(self, tmp_path):
        message = self.message(tmp_path / 'x.safetensors', 'vgg16', 32, fc_layers=(8,))
        assert message == 'vgg16 of timm takes images of 224x224 only'
        with pytest.raises(UserError, match='224x224 only'):
            network('vgg16', 32, fc_layers=(8,)).save(tmp_path / 'hub', for_hub=True)
        assert list(tmp_path.iterdir()) == []  # nothing remains

    def test_what_a_killed_program_left_is_not_in_the_way(self, tmp_path):
        for name in ('run', 'hub'):
            (tmp_path / f'.partial-{name}').mkdir()
        net = network('lenet5', 32)
        net.save(tmp_path / 'run')
        assert [path.name for path in tmp_path.glob('*run*')] == ['run']

    def test_a_target_that_exists(self, tmp_path):
        (tmp_path / 'x.safetensors').write_bytes(b'mine')
        assert 'exists already' in self.message(tmp_path / 'x.safetensors')
        assert (tmp_path / 'x.safetensors').read_bytes() == b'mine'

    @pytest.mark.parametrize('name', ['x.h5', 'x.pth', 'x.npz'])
    def test_an_ending_of_no_format(self, name, tmp_path):
        assert 'for Keras it is .weights.h5' in self.message(tmp_path / name)

    def test_a_network_that_the_other_library_does_not_have(self, tmp_path):
        small = {'stem': 'small', 'width': 0.125, 'middle_repeats': 1}
        for size in (299, 8):  # of 8x8 pixels Keras makes none
            message = self.message(tmp_path / 'x.weights.h5', size=size, **small)
            assert 'the network is not Xception of Keras' in message
        assert 'no array like' in self.message(tmp_path / 'x.safetensors', fc_layers=(8,))
        assert list(tmp_path.iterdir()) == []


def test_pytorch_finds_its_counters_of_batches(tmp_path):
    network('xception', 299).save(tmp_path / 'x.safetensors')
    raw = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
    counters = [raw[name] for name in raw if name.endswith('num_batches_tracked')]
    assert len(counters) == 40
    assert {(c.dtype, c.shape) for c in counters} == {(np.dtype(np.int64), ())}
