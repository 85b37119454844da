"""Files as Keras 1 to 3 write them: layers without names, heads, what configurations say."""

import functools
import itertools
import json
import re
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.models import abstract_variables
from xception_flax.weights import keras_config, keras_names, keras_order
from xception_flax.weights.arrays import by_path

layers = keras.layers


@functools.cache
def application(name, size=299):
    """A network of Keras with random statistics, without a head."""
    theirs = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(size, size, 3)
    )
    rng = np.random.default_rng(0)
    for weight in theirs.weights:
        if weight.name in ('gamma', 'beta', 'moving_mean', 'moving_variance'):
            weight.assign(rng.uniform(0.8, 1.2, weight.shape))
    return theirs


def with_head(*head, size=71, before=()):
    """Keras's Xception with layers before and behind it, as in Keras's guide to transfer."""
    inputs = x = keras.Input((size, size, 3))
    for layer in (*before, application('Xception', 71), *head):
        x = layer(x)
    return keras.Model(inputs, x)


def roles(layer):
    """The arrays of a layer as we name them."""
    names = {
        'depthwise_kernel': 'depthwise', 'pointwise_kernel': 'pointwise', 'gamma': 'scale',
        'beta': 'bias', 'moving_mean': 'mean', 'moving_variance': 'var',
    }  # fmt: skip
    return {names.get(weight.name, weight.name): np.asarray(weight) for weight in layer.weights}


NETWORKS = {
    'Xception': 'xception', 'VGG16': 'vgg16', 'ResNet50': 'resnet152', 'ResNet101': 'resnet152',
    'ResNet152': 'resnet152', 'InceptionV3': 'inception_v3',
}  # fmt: skip


@pytest.mark.parametrize(
    'name', ['Xception', *(pytest.param(x, marks=pytest.mark.slow) for x in [*NETWORKS][1:])]
)
def test_layers_are_found_by_their_order_in_the_model(name):
    """With names that tell nothing but the order of `model.layers`, as before Keras 3.6."""
    theirs = getattr(keras.applications, name)(weights=None, include_top=False)
    weighted = [layer for layer in theirs.layers if layer.weights]
    arrays = {
        f'{i}/{role}': value
        for i, layer in enumerate(weighted)
        for role, value in roles(layer).items()
    }
    found = keras_order.names(arrays)
    assert len(found) == len(weighted)
    own = keras_names.ranked(layer.name for layer in weighted)
    assert [found[str(i)] for i in range(len(weighted))] == [own[x.name] for x in weighted]
    network, options = keras_names.recognise(keras_names.canonical(arrays))
    assert network == NETWORKS[name]
    assert {(3, 4, 6, 3): 'ResNet50', (3, 4, 23, 3): 'ResNet101', (3, 8, 36, 3): 'ResNet152'}.get(
        options.get('stages'), name
    ) == name


@pytest.mark.slow
def test_the_order_of_inception_v3_is_that_of_keras():
    """In the graph of Keras a convolution follows the one that has the number before it here."""
    theirs = keras.applications.InceptionV3(weights=None, include_top=False)
    convolutions = [x for x in theirs.layers if isinstance(x, layers.Conv2D)]
    model = xception_flax.create_model('inception_v3')
    names = keras_names.names('inception_v3', by_path(abstract_variables(model, 299)))
    ours = {  # by our unit, the layer in Keras
        path.removesuffix('/conv/kernel'): convolutions[int(name.split('#')[1].split('/')[0])]
        for path, name in names.items()
        if path.endswith('/conv/kernel')
    }
    assert len(ours) == 94

    def before(tensor):
        """The convolutions that a tensor comes from."""
        layer = tensor._keras_history.operation
        if isinstance(layer, layers.Conv2D):
            return {layer.name}
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        return {name for x in inputs for name in ([] if x is theirs.input else before(x))}

    for unit, layer in ours.items():
        match = re.fullmatch(r'(mixed\d+/branch.*_)(\d)(\w?)', unit)
        if match and match[2] != '1':
            previous = f'{match[1]}{int(match[2]) - 1}'
            assert before(layer.input) == {ours[previous].name}, unit
    stem = [ours[f'conv{i}'] for i in range(1, 6)]
    for first, second in itertools.pairwise(stem):
        assert before(second.input) == {first.name}


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    """The variables that a file with names gives."""
    path = tmp_path_factory.mktemp('named') / 'x.weights.h5'
    application('Xception', 71).save_weights(path)
    return xception_flax.load(path, new_head=True).variables


def same_trunk(net, expected):
    ours, theirs = by_path(net.variables), by_path(expected)
    for path in theirs:
        if not path.startswith(('fc', 'logits')):
            np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def keras_1_names():
    """The names of Keras's published file of 2017 by those of today, in the order of the model.

    From tables of public converters: all layers are counted in the order of their making, in which
    a shortcut comes before the other layers of its block.
    """
    blocks = {2: 2, 3: 2, 4: 2, **dict.fromkeys(range(5, 13), 3), 13: 2, 14: 2}
    made = [('conv', 'block1_conv1'), ('conv', 'block1_conv2')]
    for block, count in blocks.items():
        made += [('conv', f'shortcut{block}')] if block in (2, 3, 4, 13) else []
        made += [('separable', f'block{block}_sepconv{i}') for i in range(1, count + 1)]
    counts = {'conv': 0, 'separable': 0}
    found = {}
    for number, (kind, name) in enumerate(made, start=1):
        counts[kind] += 1
        prefix = 'separable' if kind == 'separable' else ''
        found[name] = f'{prefix}convolution2d_{counts[kind]}'
        found[f'{name}_bn'] = f'batchnormalization_{number}'
    assert found['block13_sepconv1_bn'] == 'batchnormalization_37'
    assert found['shortcut13_bn'] == 'batchnormalization_36'
    assert found['block14_sepconv2'] == 'separableconvolution2d_34'
    return found


KERAS_1_ARRAYS = {
    'kernel': 'W', 'depthwise': 'depthwise_kernel', 'pointwise': 'pointwise_kernel',
    'scale': 'gamma', 'bias': 'beta', 'mean': 'running_mean', 'var': 'running_std',
}  # fmt: skip


@pytest.mark.parametrize(
    'order', ['of the model', pytest.param('of their making', marks=pytest.mark.slow)]
)
def test_the_published_files_of_keras_1_are_read(order, expected, tmp_path):
    old = keras_1_names()
    shortcuts = iter(sorted([2, 3, 4, 13] * 2))
    weighted = []
    for layer in application('Xception', 71).layers:
        if layer.weights:
            name = layer.name
            if name not in old:  # counters: convolution and batch norm of each shortcut
                block = next(shortcuts)
                name = f'shortcut{block}' + ('_bn' if 'batch' in name else '')
            weighted.append((old[name], roles(layer)))
    kernel = np.random.default_rng(0).normal(size=(2048, 6)).astype(np.float32)
    weighted.append(('dense_2', {'kernel': kernel, 'bias': np.zeros(6, np.float32)}))
    if order == 'of their making':
        weighted.sort(key=lambda item: int(item[0].rpartition('_')[2]))
    file = tmp_path / 'xception_weights.h5'
    with h5py.File(file, 'w') as h5:
        h5.attrs['layer_names'] = ['input_1', *(name for name, _ in weighted)]
        h5.create_group('input_1').attrs['weight_names'] = []
        for name, arrays in weighted:
            group = h5.create_group(name)
            short = KERAS_1_ARRAYS | ({'bias': 'b'} if name == 'dense_2' else {})
            group.attrs['weight_names'] = [f'{name}_{short[role]}:0'.encode() for role in arrays]
            for role, value in arrays.items():
                group[f'{name}_{short[role]}:0'] = value
    net = xception_flax.load(file)
    same_trunk(net, expected)
    np.testing.assert_array_equal(net.variables['params']['logits']['kernel'], kernel)


def without_names(source, target):
    """A copy of a `.keras` file, or of the weights in one, as Keras wrote it before 3.6."""
    inner = target.with_suffix('.h5')
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inner.write_bytes(members['model.weights.h5'])
    with h5py.File(inner, 'r+') as file:
        file.visititems(lambda _, group: group.attrs.pop('name', None))
    if target.suffix == '.keras':
        with zipfile.ZipFile(target, 'w') as archive:
            for name, data in (members | {'model.weights.h5': inner.read_bytes()}).items():
                archive.writestr(name, data)
    else:
        inner.rename(target)


@pytest.mark.parametrize('suffix', ['.keras', pytest.param('.weights', marks=pytest.mark.slow)])
def test_files_of_keras_before_3_6_are_read(suffix, expected, tmp_path):
    model = with_head(
        layers.GlobalAveragePooling2D(), layers.Dense(5, 'relu'), layers.Dense(4, 'softmax')
    )
    model.save(tmp_path / 'new.keras')
    file = tmp_path / f'old{suffix}'
    without_names(tmp_path / 'new.keras', file)
    net = xception_flax.load(file)
    assert net.config.xception.fc_layers == (5,)
    logits = net.variables['params']['logits']['kernel']
    np.testing.assert_array_equal(logits, model.layers[-1].kernel)
    same_trunk(net, expected)
    same_trunk(xception_flax.load(file, new_head=True), expected)


HEADS = {
    'a dense layer of its own name': (
        (layers.GlobalAveragePooling2D, {}), (layers.Dense, {'units': 3, 'name': 'kinds'}),
    ),
    'two dense layers': (
        (layers.GlobalAveragePooling2D, {}), (layers.Dropout, {'rate': 0.2}),
        (layers.Dense, {'units': 3, 'activation': 'relu', 'name': 'z'}),
        (layers.Dense, {'units': 3, 'name': 'a', 'activation': 'softmax'}),
    ),
    'an activation as a layer': (
        (layers.GlobalAveragePooling2D, {}), (layers.Dense, {'units': 6}), (layers.ReLU, {}),
        (layers.Dense, {'units': 3}), (layers.Softmax, {}),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('suffix', ['.keras', '.h5', '.weights.h5'])
def test_heads_give_the_probabilities_of_keras(head, suffix, tmp_path):
    model = with_head(*(kind(**options) for kind, options in HEADS[head]))
    file = tmp_path / f'tuned{suffix}'
    (model.save_weights if 'weights' in suffix else model.save)(file)
    net = xception_flax.load(file)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 71, 71, 3)).astype(np.float32)
    logits = functools.partial(net.model.apply, train=False)(net.variables, x)
    theirs = model.predict(x, verbose=0)
    ours = jax.nn.softmax(logits) if np.allclose(theirs.sum(1), 1) else logits
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def said(model, network='xception', **training):
    """What the configuration of a model says."""
    return keras_config.read(network, json.loads(model.to_json()), training)


POOLED = layers.GlobalAveragePooling2D()


@pytest.mark.parametrize(
    ('head', 'training', 'loss'),
    [
        ([POOLED, layers.Dense(3, 'softmax')], {}, 'softmax'),
        ([POOLED, layers.Dense(1, 'sigmoid')], {}, 'sigmoid'),
        ([POOLED, layers.Dense(1), layers.Activation('sigmoid')], {}, 'sigmoid'),
        ([POOLED, layers.Dense(3)], {'loss': 'sparse_categorical_crossentropy'}, 'softmax'),
        ([POOLED, layers.Dense(1)], {'loss': {'class_name': 'BinaryCrossentropy'}}, 'sigmoid'),
        ([POOLED, layers.Dense(3)], {'loss': {'out': 'binary_focal_crossentropy'}}, 'sigmoid'),
        ([POOLED, layers.Dense(3)], {}, None),
        ([POOLED, layers.Flatten(), layers.Dense(3, 'softmax')], {}, 'softmax'),
    ],
)  # fmt: skip
def test_the_activation_is_that_of_the_file(head, training, loss):
    found = said(with_head(*head), **training)
    assert found.problems == found.head_problems == []
    assert found.settings == {'image_size': 71} | ({'loss': loss} if loss else {})
    assert found.options == {'bn_epsilon': 1e-3}


@pytest.mark.parametrize(
    ('head', 'training', 'problem'),
    [
        ([layers.GlobalMaxPooling2D(), layers.Dense(3, 'softmax')], {}, 'GlobalMaxPooling2D'),
        ([layers.Flatten(), layers.Dense(3, 'softmax')], {}, 'starts with Flatten'),
        ([POOLED, layers.Dense(4, 'tanh'), layers.Dense(3, 'softmax')], {}, "'tanh', not relu"),
        ([POOLED, layers.Dense(4), layers.Dense(3, 'softmax')], {}, "'linear', not relu"),
        ([POOLED, layers.BatchNormalization(), layers.Dense(3)], {}, 'BatchNormalization'),
        ([POOLED, layers.Dense(3, 'tanh')], {}, "activation 'tanh'"),
        ([POOLED, layers.Dense(3)], {'loss': 'categorical_hinge'}, 'other values than'),
        ([POOLED, layers.Dense(4), layers.ReLU(0.05), layers.Dense(3)], {}, '(ReLU)'),
        ([POOLED, layers.Dense(4, 'relu'), *[layers.Dense(4, 'relu')] * 2, layers.Dense(3)],
         {}, '(Dense)'),
        ([POOLED, layers.Dense(1)], {'loss': 'mse'}, 'other values than probabilities'),
        ([POOLED, layers.Dense(4, 'relu'), layers.LayerNormalization(), layers.Dense(3, 'softmax')],
         {}, 'LayerNormalization'),
    ],
)  # fmt: skip
def test_a_head_that_no_network_here_has_is_a_problem(head, training, problem):
    found = said(with_head(*head), **training)
    assert found.problems == []
    assert problem in ' '.join(found.head_problems)


class Halved(layers.Layer):
    def call(self, x):
        return x / 2


@pytest.mark.parametrize(
    ('before', 'preprocessing', 'problem'),
    [
        ([], None, ''),
        ([layers.RandomFlip(), layers.RandomRotation(0.1)], None, ''),
        ([layers.Rescaling(1 / 127.5, -1)], 'tf', ''),
        ([layers.Rescaling(1 / 255)], 'unit', ''),
        ([layers.Rescaling(1 / 255), layers.Rescaling(2.0, -1.0)], 'tf', ''),
        ([keras.applications.xception.preprocess_input], 'tf', ''),
        ([lambda x: x / 255.0], 'unit', ''),
        ([layers.Rescaling(1 / 100)], None, 'scales pixels by 0.01 and adds 0'),
        ([layers.Rescaling([1 / 255, 1 / 255, 1 / 250])], None, 'changes the images'),
        ([keras.applications.vgg16.preprocess_input], 'caffe', ''),
        ([layers.RandAugment(), layers.MixUp()], None, ''),
        ([layers.Normalization(mean=[0.5] * 3, variance=[1] * 3)], None, 'changes the images'),
        ([layers.Resizing(71, 71)], None, 'changes the images'),
        ([Halved()], None, 'changes the images'),
    ],
)
def test_what_the_file_does_to_images_is_used_or_a_problem(before, preprocessing, problem):
    found = said(with_head(POOLED, layers.Dense(3, 'softmax'), before=before))
    assert found.settings.get('preprocessing') == preprocessing
    assert bool(found.problems) == bool(problem)
    assert problem in ' '.join(found.problems)


def test_a_trunk_that_is_not_keras_s_is_a_problem():
    config = json.loads(with_head(POOLED, layers.Dense(3, 'softmax')).to_json())

    def change(setting, value, kind):
        changed = json.loads(json.dumps(config))
        trunk = changed['config']['layers'][1]['config']['layers']
        layer = next(x for x in trunk if x['class_name'] == kind)
        layer['config'][setting] = value
        return ' '.join(keras_config.read('xception', changed, {}).problems)

    assert 'strides' in change('strides', [1, 1], 'Conv2D')
    assert 'strides' in change('dilation_rate', [2, 2], 'SeparableConv2D')
    assert "['swish']" in change('activation', 'swish', 'Activation')
    assert 'epsilons' in change('epsilon', 1e-5, 'BatchNormalization')
    assert 'channels_first' in change('data_format', 'channels_first', 'MaxPooling2D')


@pytest.mark.parametrize('between', [layers.Rescaling(5.0), layers.LeakyReLU(), layers.ReLU(6.0)])
def test_a_layer_between_trunk_and_pooling_is_a_problem(between):
    found = said(with_head(between, POOLED, layers.Dense(3, 'softmax')))
    assert "Keras's network has no layer like" in found.problems[0]


def test_a_second_output_is_a_problem_of_the_head():
    inputs = keras.Input((71, 71, 3))
    x = POOLED(application('Xception', 71)(inputs))
    x = layers.Dense(8, 'relu')(x)
    model = keras.Model(inputs, [layers.Dense(8, 'relu')(x), layers.Dense(3, 'softmax')(x)])
    assert 'it has 2 outputs' in said(model).head_problems


@pytest.mark.slow
@pytest.mark.parametrize('name', ['Xception', 'VGG16', 'ResNet50', 'InceptionV3'])
def test_networks_of_keras_have_no_problems(name):
    theirs = getattr(keras.applications, name)(weights=None)
    found = said(theirs, NETWORKS[name])
    assert found.problems == found.head_problems == []
    assert found.settings == {'image_size': theirs.input_shape[1], 'loss': 'softmax'}


def test_the_input_of_a_file_is_used_or_a_problem():
    free = keras.applications.Xception(weights=None, include_top=False, input_shape=(None, None, 3))
    assert said(free).settings == {}
    wide = keras.applications.Xception(weights=None, include_top=False, input_shape=(71, 96, 3))
    assert 'networks here take [S, S, 3]' in said(wide).problems[0]


@pytest.mark.slow
def test_a_partly_frozen_trunk_is_read_from_old_files(tmp_path):
    """In the group of a nested model its trainable arrays come first."""
    trunk = keras.applications.Xception(weights=None, include_top=False, input_shape=(71, 71, 3))
    for layer in trunk.layers[:60]:
        layer.trainable = False
    model = keras.Sequential([trunk, layers.GlobalAveragePooling2D(), layers.Dense(3, 'softmax')])
    model.save(tmp_path / 'x.h5')
    model.save(tmp_path / 'x.keras')
    old, new = (xception_flax.load(tmp_path / name).variables for name in ('x.h5', 'x.keras'))
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_a_classifier_without_a_bias_has_one_of_zeros(tmp_path):
    model = with_head(POOLED, layers.Dense(3, 'softmax', use_bias=False))
    model.save(tmp_path / 'x.keras')
    logits = xception_flax.load(tmp_path / 'x.keras').variables['params']['logits']
    np.testing.assert_array_equal(logits['kernel'], model.layers[-1].kernel)
    np.testing.assert_array_equal(logits['bias'], np.zeros(3))


@pytest.mark.slow
def test_what_a_vgg_says_of_the_size_of_images(tmp_path):
    trunk = keras.applications.VGG16(weights=None, include_top=False, input_shape=(96, 96, 3))
    pooled = keras.Sequential([trunk, layers.GlobalAveragePooling2D(), layers.Dense(5)])
    pooled.save_weights(tmp_path / 'pooled.weights.h5')
    pooled.save(tmp_path / 'pooled.keras')
    with pytest.raises(UserError, match='for the mean of the features, or for images of 32x32'):
        xception_flax.load(tmp_path / 'pooled.weights.h5')
    with pytest.raises(UserError, match='starts with GlobalAveragePooling2D'):
        xception_flax.load(tmp_path / 'pooled.keras')
    flat = keras.Sequential([trunk, layers.Flatten(), layers.Dense(5, 'softmax')])
    flat.save_weights(tmp_path / 'flat.weights.h5')
    assert xception_flax.load(tmp_path / 'flat.weights.h5').config.image_size == 96


@pytest.mark.slow
def test_the_network_of_a_name_is_that_of_the_file(tmp_path):
    application('Xception', 71).save_weights(tmp_path / 'x.weights.h5')
    for name in ('keras/resnet152', 'timm/legacy_xception.tf_in1k'):
        with pytest.raises(UserError, match=f'holds xception of Keras, which is not {name}'):
            xception_flax.load(f'{name}={tmp_path}/x.weights.h5')


def test_problems_of_the_head_go_with_the_head(expected, tmp_path):
    file = tmp_path / 'x.keras'
    with_head(layers.GlobalMaxPooling2D(), layers.BatchNormalization(), layers.Dense(3)).save(file)
    with pytest.raises(UserError, match=r'GlobalMaxPooling2D.*init.new_head=True') as error:
        xception_flax.load(file)
    assert '\n' not in str(error.value)
    model = xception_flax.create_model('xception', 5)
    net = xception_flax.load(file, model=model, new_head=True)
    same_trunk(net, expected)
    assert net.variables['params']['logits']['kernel'].shape == (2048, 5)


def test_one_class_needs_its_activation(tmp_path):
    model = with_head(POOLED, layers.Dense(1, 'sigmoid'))
    model.save(tmp_path / 'cats.keras')
    model.save_weights(tmp_path / 'cats.weights.h5')
    net = xception_flax.load(tmp_path / 'cats.keras')
    image = np.random.default_rng(0).integers(0, 256, (71, 71, 3), np.uint8)
    (found,) = net.predict(image)
    theirs = model.predict(image[None] / np.float32(127.5) - 1, verbose=0)
    assert found.labels[0].probability == pytest.approx(float(theirs[0, 0]), abs=1e-5)
    with pytest.raises(UserError, match='one class and does not say by which activation'):
        xception_flax.load(tmp_path / 'cats.weights.h5')


def test_a_file_that_points_elsewhere_or_declares_too_much_is_refused(tmp_path):
    def refused(name, write):
        with h5py.File(tmp_path / f'{name}.h5', 'w') as file:
            file.attrs['layer_names'] = ['a']
            group = file.create_group('a')
            group.attrs['weight_names'] = ['w']
            write(group)
        with pytest.raises(UserError) as error:
            xception_flax.load(tmp_path / f'{name}.h5')
        return str(error.value)

    with h5py.File(tmp_path / 'other.h5', 'w') as other:
        other['w'] = np.zeros(3)
    link = h5py.ExternalLink(str(tmp_path / 'other.h5'), 'w')
    assert 'lies in another file' in refused('link', lambda g: g.__setitem__('w', link))
    (tmp_path / 'raw').write_bytes(bytes(24))
    raw = {'shape': (3,), 'dtype': 'f8', 'external': [(str(tmp_path / 'raw'), 0, 24)]}
    assert 'lies in another file' in refused('raw', lambda g: g.create_dataset('w', **raw))
    large = {'shape': (10**9,), 'dtype': 'f4', 'chunks': (10**6,)}
    assert 'is larger than the file' in refused('large', lambda g: g.create_dataset('w', **large))
