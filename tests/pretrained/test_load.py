"""Weights of Keras's Xception, as Keras writes them, read into ours; and what does not fit."""

import functools
import json
import shutil
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest
import safetensors.numpy

import xception_flax
from xception_flax.pretrained import libraries
from xception_flax.pretrained.load import flatten
from xception_flax.runtime.errors import UserError

CLASSES = 7
FORMATS = ('xception.h5', 'xception.weights.h5', 'xception.keras')


@pytest.fixture(scope='module')
def theirs():
    """A Keras Xception whose counters do not begin at 0, with batch norms that do something."""
    keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    model = keras.applications.Xception(weights=None, classes=CLASSES)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                # Such that the picture matters to the end.
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
    return {name: xception_flax.load_pretrained(folder / name) for name in FORMATS}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize('name', FORMATS)
def test_every_format_of_keras_gives_the_same_network(loaded, name):
    model, variables, config = loaded[name]
    assert model.num_classes == CLASSES
    assert (config.model, config.image_size, config.preprocessing) == ('xception', 299, 'tf')
    assert config.dataset.num_classes == CLASSES
    assert same(variables, loaded[FORMATS[0]][1])


def test_the_network_predicts_what_keras_does(loaded, theirs):
    model, variables, _ = loaded['xception.keras']
    noise = np.random.default_rng(1).uniform(-1, 1, (299, 299, 3))
    x = np.stack([noise, np.full_like(noise, 0.9)]).astype(np.float32)
    ours = jax.nn.softmax(jax.jit(functools.partial(model.apply, train=False))(variables, x))
    expected = theirs.predict(x, verbose=0)
    assert np.ptp(expected, 0).max() > 1e-3
    np.testing.assert_allclose(ours, expected, atol=2e-6)  # float32


def test_layers_that_keras_numbers_are_found_by_their_order(loaded, theirs):
    _, variables, _ = loaded['xception.weights.h5']
    projections = [la for la in theirs.layers if la.name.startswith('conv2d')]
    assert projections[0].name != 'conv2d'
    params = variables['params']
    blocks = [params['entry_flow'][f'block{i}'] for i in (1, 2, 3)] + [
        params['exit_flow']['block1']
    ]
    for block, layer in zip(blocks, projections, strict=True):
        np.testing.assert_array_equal(block['shortcut']['conv']['kernel'], layer.kernel)


def test_files_of_keras_1_whose_arrays_have_other_names_are_read(folder, loaded, tmp_path):
    """Layers' groups with 'NAME_W_1:0', as in Keras's own files of 2017; and counters from 1."""
    old = tmp_path / 'old.h5'
    with h5py.File(folder / 'xception.h5') as file, h5py.File(old, 'w') as new:
        groups = file['model_weights']
        renamed = {}
        for name in groups.attrs['layer_names']:
            renamed[name] = name.replace('conv2d', 'convolution2d').replace('_norm', 'norm')
            group = new.create_group(renamed[name])
            names = [
                f'{renamed[name]}_{i}:0' for i in range(len(groups[name].attrs['weight_names']))
            ]
            for key, array in zip(names, groups[name].attrs['weight_names'], strict=True):
                group[key] = groups[name][array][()]
            group.attrs['weight_names'] = [n.encode() for n in names]
        layers = [n.encode() for n in renamed.values()]
        new.attrs['layer_names0'], new.attrs['layer_names1'] = layers[:50], layers[50:]
    _, variables, _ = xception_flax.load_pretrained(old)
    assert same(variables, loaded['xception.h5'][1])


@pytest.mark.parametrize('suffix', ['.weights.h5', '.keras', '.h5'])
def test_a_fine_tuned_model_of_keras_is_read(theirs, loaded, suffix, tmp_path):
    """Keras's guide to transfer learning: the trunk as one layer, a pooling and a new head."""
    base = keras.Model(theirs.input, theirs.get_layer('avg_pool').input)
    tuned = keras.Sequential([base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    tuned.build((None, 299, 299, 3))
    file = tmp_path / f'tuned{suffix}'
    (tuned.save_weights if 'weights' in suffix else tuned.save)(file)
    model, variables, _ = xception_flax.load_pretrained(file)
    assert model.num_classes == 3
    np.testing.assert_array_equal(variables['params']['logits']['kernel'], tuned.layers[-1].kernel)
    trunk = loaded['xception.h5'][1]
    assert same(variables['params']['exit_flow'], trunk['params']['exit_flow'])
    assert same(variables['batch_stats'], trunk['batch_stats'])


@pytest.fixture(scope='module')
def headless(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp('keras') / 'notop.weights.h5'
    keras.Model(theirs.input, theirs.get_layer('avg_pool').output).save_weights(path)
    return path


def test_without_a_classifier_a_new_one_is_drawn_when_asked_for(headless, loaded):
    with pytest.raises(UserError, match='has no classifier'):
        xception_flax.load_pretrained(headless)
    model = xception_flax.create_model('xception', 5, dropout=0.2)
    with pytest.raises(UserError, match='predictions/kernel is missing; new_head=True draws'):
        xception_flax.load_pretrained(headless, model)
    _, variables, config = xception_flax.load_pretrained(headless, model, new_head=True)
    head = variables['params']['logits']
    assert head['kernel'].shape == (2048, 5)
    limit = np.sqrt(6 / (2048 + 5))  # Glorot's uniform
    assert 0.9 * limit < np.abs(head['kernel']).max() < limit
    assert not head['bias'].any()
    assert config.xception.dropout == 0.2
    assert config.dataset.num_classes == 5
    assert xception_flax.load_pretrained(headless, new_head=True)[0].num_classes == 1000
    assert same(variables['batch_stats'], loaded['xception.h5'][1]['batch_stats'])


def test_a_network_without_learned_scales_takes_only_scales_of_one(folder, tmp_path):
    model = xception_flax.create_model('xception', CLASSES, bn_scale=False)
    with pytest.raises(UserError, match=r'scale is not all ones, and the network has no learned'):
        xception_flax.load_pretrained(folder / 'xception.weights.h5', model)
    ones = tmp_path / 'ones.h5'
    shutil.copy(folder / 'xception.h5', ones)
    with h5py.File(ones, 'r+') as file:
        for group in file['model_weights'].values():
            for name in group.attrs['weight_names']:
                if 'gamma' in name:
                    group[name][...] = 1
    _, variables, _ = xception_flax.load_pretrained(ones, model)
    assert not any(path.endswith('scale') for path in flatten(variables))
    _, variables, _ = xception_flax.load_pretrained(ones)
    assert np.all(variables['params']['entry_flow']['conv1']['bn']['scale'] == 1)


class TestMistakes:
    """Each ends in one line that says what is wrong."""

    def told(self, path, model=None):
        with pytest.raises(UserError) as error:
            xception_flax.load_pretrained(path, model)
        message = str(error.value)
        assert '\n' not in message
        assert len(message) < 700
        return message

    def test_no_such_file_or_name(self, tmp_path):
        assert 'there is no weights file' in self.told(tmp_path / 'none.h5')
        assert "did you mean 'keras/xception'" in self.told('keras/exception')

    def test_another_ending(self, tmp_path):
        (tmp_path / 'x.bin').write_bytes(b'1')
        assert "they end in ('.weights.h5'" in self.told(tmp_path / 'x.bin')

    @pytest.mark.parametrize('name', [*FORMATS, 'x.safetensors', 'x.pth'])
    def test_a_file_of_something_else(self, name, tmp_path):
        (tmp_path / name).write_text('no weights')
        assert 'is damaged, or no' in self.told(tmp_path / name)

    @pytest.mark.parametrize('name', FORMATS)
    def test_a_file_that_was_cut_short(self, name, folder, tmp_path):
        data = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert 'is damaged, or no' in self.told(tmp_path / name)

    def test_a_keras_file_without_weights(self, tmp_path):
        with zipfile.ZipFile(tmp_path / 'x.keras', 'w') as archive:
            archive.writestr('config.json', '{}')
        assert 'is damaged' in self.told(tmp_path / 'x.keras')
        h5py.File(tmp_path / 'x.h5', 'w').close()
        assert 'holds no weights' in self.told(tmp_path / 'x.h5')

    def test_another_network_of_keras(self, tmp_path):
        small = keras.Sequential([keras.layers.Dense(2)])
        small.build((None, 3))
        small.save_weights(tmp_path / 'small.weights.h5')
        assert 'holds none of the networks here' in self.told(tmp_path / 'small.weights.h5')
        lstm = keras.Sequential([keras.layers.LSTM(2)])
        lstm.build((None, 3, 4))
        lstm.save_weights(tmp_path / 'lstm.weights.h5')
        assert 'none of ours' in self.told(tmp_path / 'lstm.weights.h5')

    def test_arrays_of_something_else(self, tmp_path):
        safetensors.numpy.save_file({'a': np.zeros(3)}, tmp_path / 'x.safetensors')
        assert 'holds none of the networks here' in self.told(tmp_path / 'x.safetensors')

    def test_weights_of_another_network(self, folder):
        model = xception_flax.create_model('vgg16', CLASSES)
        assert 'weights of xception, not of vgg16' in self.told(folder / FORMATS[0], model)

    def test_other_shapes_and_other_numbers_of_classes(self, folder):
        model = xception_flax.create_model('xception', CLASSES, width=0.5)
        message = self.told(folder / FORMATS[0], model)
        assert 'block2_sepconv1_bn/mean is (128,), not (64,)' in message
        model = xception_flax.create_model('xception', 5)
        message = self.told(folder / FORMATS[0], model)
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
        message = self.told(file)
        assert 'block9_sepconv2/depthwise is missing' in message
        assert 'extra/kernel is left over' in message
        assert '3 arrays' in message

    def test_options_that_the_library_does_not_have(self, folder):
        model = xception_flax.create_model('xception', CLASSES, intermediate='bn_relu')
        assert "Keras's xception has nothing like" in self.told(folder / FORMATS[0], model)


def test_names_are_one_to_one():
    for library in libraries.LIBRARIES.values():
        for network in set(library.networks) & {'xception', 'inception_v3', 'vgg16', 'resnet152'}:
            model = xception_flax.create_model(network)
            x = np.zeros((1, 224, 224, 3), np.float32)
            shapes = jax.eval_shape(lambda m=model, x=x: m.init(jax.random.key(0), x))
            names = library.names(network, flatten(shapes))
            assert len(set(names.values())) == len(names)
            json.dumps(names)
