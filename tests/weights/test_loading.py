"""Weights of Keras's Xception, loaded from every format of Keras; and files that do not fit."""

import functools
import re
import shutil
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest
import safetensors.numpy

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.models import abstract_variables
from xception_flax.weights import keras_names, timm_names
from xception_flax.weights.arrays import by_path

CLASSES = 7
FORMATS = ('xception.h5', 'xception.weights.h5', 'xception.keras')


@pytest.fixture(scope='module')
def theirs():
    """A Keras Xception whose counters do not begin at 0, with random batch norm."""
    keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    model = keras.applications.Xception(weights=None, classes=CLASSES)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                # Different images have to give different probabilities.
                low, high = {'gamma': (0.5, 1.5), 'moving_variance': (0.05, 0.15)}.get(
                    weight.name, (-0.1, 0.1)
                )
                weight.assign(rng.uniform(low, high, weight.shape))
    return model


@pytest.fixture(scope='module')
def folder(theirs, tmp_path_factory):
    """A folder with the weights in every format of Keras."""
    path = tmp_path_factory.mktemp('keras')
    theirs.save(path / 'xception.h5')
    theirs.save_weights(path / 'xception.weights.h5')
    theirs.save(path / 'xception.keras')
    return path


@pytest.fixture(scope='module')
def loaded(folder):
    return {name: xception_flax.load(folder / name) for name in FORMATS}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize('name', FORMATS)
def test_every_format_of_keras_gives_the_same_network(loaded, name):
    net = loaded[name]
    assert net.model.num_classes == net.config.dataset.num_classes == CLASSES
    assert (net.config.model, net.config.image_size) == ('xception', 299)
    assert net.config.preprocessing == 'tf'
    assert same(net.variables, loaded[FORMATS[0]].variables)


def test_the_network_predicts_the_same_as_keras(loaded, theirs):
    net = loaded['xception.keras']
    noise = np.random.default_rng(1).uniform(-1, 1, (299, 299, 3))
    x = np.stack([noise, np.full_like(noise, 0.9)]).astype(np.float32)
    apply = jax.jit(functools.partial(net.model.apply, train=False))
    ours = jax.nn.softmax(apply(net.variables, x))
    expected = theirs.predict(x, verbose=0)
    assert np.ptp(expected, 0).max() > 1e-3
    np.testing.assert_allclose(ours, expected, atol=2e-6)  # float32


def test_layers_that_keras_numbers_are_found_by_their_order(loaded, theirs):
    params = loaded['xception.weights.h5'].variables['params']
    projections = [la for la in theirs.layers if la.name.startswith('conv2d')]
    assert projections[0].name != 'conv2d'
    blocks = [params['entry_flow'][f'block{i}'] for i in (1, 2, 3)] + [
        params['exit_flow']['block1']
    ]
    for block, layer in zip(blocks, projections, strict=True):
        np.testing.assert_array_equal(block['shortcut']['conv']['kernel'], layer.kernel)


@pytest.mark.parametrize('name', FORMATS)
def test_the_content_of_a_file_decides_not_its_name(name, folder, loaded, tmp_path):
    path = tmp_path / 'weights.hdf5.bin'
    path.hardlink_to(folder / name)
    assert same(xception_flax.load(path).variables, loaded[name].variables)


@pytest.mark.parametrize('suffix', ['.weights.h5', '.keras', '.h5'])
def test_a_fine_tuned_model_of_keras_is_read(theirs, loaded, suffix, tmp_path):
    """As in Keras's guide to transfer learning: the trunk as one layer, pooling, a new head."""
    base = keras.Model(theirs.input, theirs.get_layer('avg_pool').input)
    tuned = keras.Sequential([base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    tuned.build((None, 299, 299, 3))
    file = tmp_path / f'tuned{suffix}'
    (tuned.save_weights if 'weights' in suffix else tuned.save)(file)
    net = xception_flax.load(file)
    assert net.model.num_classes == 3
    kernel = net.variables['params']['logits']['kernel']
    np.testing.assert_array_equal(kernel, tuned.layers[-1].kernel)
    trunk = loaded['xception.h5'].variables
    assert same(net.variables['params']['exit_flow'], trunk['params']['exit_flow'])
    assert same(net.variables['batch_stats'], trunk['batch_stats'])


@pytest.fixture(scope='module')
def headless(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp('keras') / 'notop.weights.h5'
    keras.Model(theirs.input, theirs.get_layer('avg_pool').output).save_weights(path)
    return path


def test_a_missing_classifier_is_initialised_on_request(headless, loaded):
    with pytest.raises(UserError, match='has no classifier'):
        xception_flax.load(headless)
    model = xception_flax.create_model('xception', 5, dropout=0.2)
    with pytest.raises(
        UserError, match=r'predictions/kernel is missing\. .*new_head=True\)` initialises'
    ):
        xception_flax.load(headless, model=model)
    net = xception_flax.load(headless, model=model, new_head=True)
    head = net.variables['params']['logits']
    assert head['kernel'].shape == (2048, 5)
    limit = np.sqrt(6 / (2048 + 5))  # Glorot's uniform
    assert 0.9 * limit < np.abs(head['kernel']).max() < limit
    assert not head['bias'].any()
    assert net.model is model
    assert net.config.xception.dropout == 0.2
    assert net.config.dataset.num_classes == 5
    assert xception_flax.load(headless, new_head=True).model.num_classes == 1000
    assert same(net.variables['batch_stats'], loaded['xception.h5'].variables['batch_stats'])


def test_a_network_without_learned_scales_accepts_only_scales_of_one(folder, tmp_path):
    model = xception_flax.create_model('xception', CLASSES, bn_scale=False)
    with pytest.raises(UserError, match=r'scale is not all ones, and the network has no learned'):
        xception_flax.load(folder / 'xception.weights.h5', model=model)
    ones = tmp_path / 'ones.h5'
    shutil.copy(folder / 'xception.h5', ones)
    with h5py.File(ones, 'r+') as file:
        for group in file['model_weights'].values():
            for name in group.attrs['weight_names']:
                if 'gamma' in name:
                    group[name][...] = 1
    net = xception_flax.load(ones, model=model)
    assert not any(path.endswith('scale') for path in by_path(net.variables))
    variables = xception_flax.load(ones).variables
    assert np.all(variables['params']['entry_flow']['conv1']['bn']['scale'] == 1)


class TestErrors:
    """Every mistake ends in one line that says what is wrong."""

    def message(self, path, **options):
        with pytest.raises(UserError) as error:
            xception_flax.load(path, **options)
        message = str(error.value)
        assert '\n' not in message
        assert len(message) < 700
        return message

    def test_no_such_file_or_name(self, tmp_path):
        assert 'no weights file' in self.message(tmp_path / 'none.h5')
        assert "did you mean 'keras/xception'" in self.message('keras/exception')

    def test_what_is_no_path(self):
        assert 'is no path' in self.message('~nobody-of-this-name/x')
        assert 'is no path' in self.message('x' * 300)
        assert "no published name ''" in self.message('')

    def test_an_unknown_kind_of_weights(self, tmp_path):
        assert "weights is 'best'; choose from" in self.message(tmp_path, weights='best')

    def test_a_step_of_a_weights_file(self, folder):
        message = self.message(folder / FORMATS[0], step=3)
        assert 'a weights file has no step 3' in message

    @pytest.mark.parametrize(
        ('content', 'what'),
        [
            (b'no weights', "a file that begins with b'no weights'"),
            (b'', 'it is empty'),
            (b'version https://git-lfs.github.com/spec/v1', 'a pointer of Git LFS'),
            (b'<!DOCTYPE html><html>', 'a page of HTML'),
            (b'PK\x03\x04 and so on', 'cut short'),
            (b'\x89HDF and so on', 'cut short'),
            (b'\x80\x02 and so on', 'a pickle, but damaged'),
        ],
    )
    def test_a_file_of_something_else(self, content, what, tmp_path):
        (tmp_path / 'x.h5').write_bytes(content)
        assert what in self.message(tmp_path / 'x.h5')

    @pytest.mark.parametrize('name', FORMATS)
    def test_a_file_that_was_cut_short(self, name, folder, tmp_path):
        data = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert re.search('damaged|cut short', self.message(tmp_path / name))

    def test_a_keras_file_without_weights(self, tmp_path):
        with zipfile.ZipFile(tmp_path / 'x.keras', 'w') as archive:
            archive.writestr('config.json', '{}')
        assert "a zip archive of 1 files, such as ['config.json']" in self.message(
            tmp_path / 'x.keras'
        )
        h5py.File(tmp_path / 'x.h5', 'w').close()
        assert 'holds no weights' in self.message(tmp_path / 'x.h5')

    def test_another_network_of_keras(self, tmp_path):
        small = keras.Sequential([keras.layers.Dense(2)])
        small.build((None, 3))
        small.save_weights(tmp_path / 'small.weights.h5')
        message = self.message(tmp_path / 'small.weights.h5')
        assert 'holds none of the networks here' in message
        assert "it has ['predictions/kernel'" in message
        assert 'block14_sepconv2 or 34 separable' in message
        lstm = keras.Sequential([keras.layers.LSTM(2)])
        lstm.build((None, 3, 4))
        lstm.save_weights(tmp_path / 'lstm.weights.h5')
        assert 'holds none of the networks here' in self.message(tmp_path / 'lstm.weights.h5')

    def test_arrays_of_something_else(self, tmp_path):
        safetensors.numpy.save_file({'a': np.zeros(3)}, tmp_path / 'x.safetensors')
        assert 'holds none of the networks here' in self.message(tmp_path / 'x.safetensors')

    def test_a_model_of_another_network(self, folder):
        model = xception_flax.create_model('vgg16', CLASSES)
        assert 'weights of xception, not of vgg16' in self.message(folder / FORMATS[0], model=model)

    def test_other_shapes_and_another_number_of_classes(self, folder):
        model = xception_flax.create_model('xception', CLASSES, width=0.5)
        message = self.message(folder / FORMATS[0], model=model)
        assert 'block2_sepconv1_bn/mean is (128,), not (64,)' in message
        model = xception_flax.create_model('xception', 5)
        message = self.message(folder / FORMATS[0], model=model)
        assert 'predictions/kernel is (2048, 7), not (2048, 5)' in message
        assert 'new_head=True' in message

    def test_arrays_that_are_missing_or_left_over(self, folder, tmp_path):
        file = tmp_path / 'broken.h5'
        shutil.copy(folder / 'xception.h5', file)
        with h5py.File(file, 'r+') as broken:
            groups = broken['model_weights']
            layers = [n for n in groups.attrs['layer_names'] if n != 'block9_sepconv2']
            groups.create_group('extra').attrs['weight_names'] = ['kernel']
            groups['extra']['kernel'] = np.zeros((1, 1, 2, 2))
            groups.attrs['layer_names'] = [*layers, 'extra']
        message = self.message(file)
        assert 'block9_sepconv2/depthwise is missing' in message
        assert 'extra/kernel is left over' in message
        assert '3 arrays' in message

    def test_options_that_keras_does_not_have(self, folder):
        model = xception_flax.create_model('xception', CLASSES, intermediate='bn_relu')
        assert 'xception of Keras has no array like' in self.message(
            folder / FORMATS[0], model=model
        )


@pytest.mark.parametrize('library', [keras_names, timm_names])
@pytest.mark.parametrize('network', ['xception', 'inception_v3', 'vgg16', 'resnet152'])
def test_names_are_one_to_one(library, network):
    paths = by_path(abstract_variables(xception_flax.create_model(network), 224))
    names = library.names(network, paths)
    assert names.keys() == paths.keys()
    assert len(set(names.values())) == len(names)
    assert all(type(name) is str for name in names.values())
