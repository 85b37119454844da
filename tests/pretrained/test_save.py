"""Weights written for Keras, for timm and as a workdir, and read again: no bit may change."""

import functools

import jax
import keras
import numpy as np
import pytest
import safetensors.numpy

import xception_flax
from xception_flax import config as configs
from xception_flax.pretrained.load import abstract_variables
from xception_flax.pretrained.save import differences
from xception_flax.runtime.errors import UserError

CLASSES = 7


def random_variables(model, size):
    """Values at random for all of a network's variables; a different one in each place."""
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model, size)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), shapes)


def config_of(model, name, size):
    c = configs.default()
    c.model, c.image_size, c.dataset.num_classes = name, size, model.num_classes
    return c


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@functools.cache
def network(name, size=224, **options):
    model = xception_flax.create_model(name, CLASSES, **options)
    return model, random_variables(model, size), config_of(model, name, size)


RESNET_50 = {'stages': (3, 4, 6, 3)}


@pytest.mark.parametrize(
    ('name', 'size', 'options', 'application'),
    [
        ('xception', 299, {}, keras.applications.Xception),
        ('inception_v3', 299, {}, keras.applications.InceptionV3),
        ('vgg16', 32, {}, keras.applications.VGG16),
        ('resnet152', 64, RESNET_50, keras.applications.ResNet50),
    ],
)
def test_keras_loads_what_is_written_and_ours_again_from_keras(
    name, size, options, application, tmp_path
):
    model, variables, config = network(name, size, **options)
    file = tmp_path / 'ours.weights.h5'
    xception_flax.save_pretrained(file, model, variables, config)
    theirs = application(weights=None, classes=CLASSES, input_shape=(size, size, 3))
    theirs.load_weights(file)
    again = tmp_path / 'again.weights.h5'
    theirs.save_weights(again)
    _, loaded, found = xception_flax.load_pretrained(again)
    assert same(loaded, variables)
    assert found.model == name
    assert {p.name for p in tmp_path.iterdir()} == {'ours.weights.h5', 'again.weights.h5'}


@pytest.mark.parametrize(
    ('name', 'size', 'options'),
    [
        ('xception', 299, {'variant': 'timm', 'bn_epsilon': 1e-5}),
        ('inception_v3', 299, {'variant': 'timm'}),
        ('vgg16', 224, {'batch_norm': True, 'bn_epsilon': 1e-5}),
        ('resnet152', 64, {'variant': 'timm', 'bn_epsilon': 1e-5, **RESNET_50}),
        ('xception41', 299, {}),
        ('xception71', 299, {}),
    ],
)
def test_timms_format_and_back(name, size, options, tmp_path):
    model, variables, config = network(name, size, **options)
    file = tmp_path / 'ours.safetensors'
    xception_flax.save_pretrained(file, model, variables, config)
    read, loaded, found = xception_flax.load_pretrained(file)
    assert same(loaded, variables)
    assert found.model == name
    assert read == model
    xception_flax.save_pretrained(tmp_path / 'again.safetensors', read, loaded, found)
    assert (tmp_path / 'again.safetensors').read_bytes() == file.read_bytes()


def test_a_workdir_and_back(tmp_path):
    model, variables, config = network('xception', 299)
    config = config.copy_and_resolve_references()
    config.crop_fraction, config.preprocessing = 0.9, 'torch'
    xception_flax.save_pretrained(tmp_path / 'run', model, variables, config)
    for load in (xception_flax.load_pretrained, xception_flax.load_checkpoint):
        read, loaded, found = load(tmp_path / 'run')
        assert read == model
        assert same(loaded, variables)
        assert (found.crop_fraction, found.preprocessing) == (0.9, 'torch')
    other = xception_flax.create_model('xception', 3)
    with pytest.raises(UserError, match=r'logits/kernel is \(2048, 7\), not \(2048, 3\)'):
        xception_flax.load_pretrained(tmp_path / 'run', other)
    _, tuned, _ = xception_flax.load_pretrained(tmp_path / 'run', other, new_head=True)
    assert same(tuned['batch_stats'], variables['batch_stats'])
    assert tuned['params']['logits']['kernel'].shape == (2048, 3)


def test_from_keras_to_timm_and_back_nothing_changes(tmp_path):
    model, variables, config = network('xception', 299)
    xception_flax.save_pretrained(tmp_path / 'x.safetensors', model, variables, config)
    read, loaded, _ = xception_flax.load_pretrained(tmp_path / 'x.safetensors')
    assert same(loaded, variables)
    assert (read.variant, read.bn_epsilon) == ('timm', 1e-5)
    assert differences('x.weights.h5', model, config) == []
    assert len(differences('x.safetensors', model, config)) == 2  # padding and epsilon


class TestMistakes:
    def told(self, target, name='xception', size=299, **options):
        with pytest.raises(UserError) as error:
            xception_flax.save_pretrained(target, *network(name, size, **options))
        assert '\n' not in str(error.value)
        return str(error.value)

    def test_a_target_that_is_there(self, tmp_path):
        (tmp_path / 'x.safetensors').write_bytes(b'mine')
        assert 'is there already' in self.told(tmp_path / 'x.safetensors')
        assert (tmp_path / 'x.safetensors').read_bytes() == b'mine'

    @pytest.mark.parametrize('name', ['x.h5', 'x.pth', 'x.npz'])
    def test_an_ending_that_is_not_written(self, name, tmp_path):
        assert 'for Keras it ends in .weights.h5' in self.told(tmp_path / name)

    def test_a_network_that_the_other_library_does_not_have(self, tmp_path):
        small = {'stem': 'small', 'width': 0.125, 'middle_repeats': 1}
        message = self.told(tmp_path / 'x.weights.h5', **small)
        assert "the network is not Keras's Xception" in message
        assert 'nothing like' in self.told(tmp_path / 'x.safetensors', fc_layers=(8,))
        assert list(tmp_path.iterdir()) == []


def test_pytorch_finds_its_counters_of_batches(tmp_path):
    xception_flax.save_pretrained(tmp_path / 'x.safetensors', *network('xception', 299))
    raw = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
    counters = [raw[name] for name in raw if name.endswith('num_batches_tracked')]
    assert len(counters) == 40
    assert {(c.dtype, c.shape) for c in counters} == {(np.dtype(np.int64), ())}
