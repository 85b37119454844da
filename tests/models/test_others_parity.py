"""Inception V3, VGG-16 and ResNet-152 against their Keras applications.

In float64, because batch norm over few values amplifies rounding. Differences are relative to the
largest element of each array.
"""

import functools

import jax
import keras
import keras_weights
import numpy as np
import pytest

import xception_flax

CLASSES = 100
BLOCKS = {
    'inception_v3': [f'mixed{i}' for i in range(11)],
    'vgg16': [f'block{i}_pool' for i in range(1, 6)],
    'resnet152': ['conv2_block3_out', 'conv3_block8_out', 'conv4_block36_out', 'conv5_block3_out'],
}
APPLICATIONS = {
    'inception_v3': keras.applications.InceptionV3,
    'vgg16': keras.applications.VGG16,
    'resnet152': keras.applications.ResNet152,
}


@functools.cache
def networks(name, size):
    """Our model, the Keras model, and the Keras model with the outputs of its blocks."""
    keras.utils.set_random_seed(0)
    theirs = APPLICATIONS[name](
        weights=None, classes=CLASSES, input_shape=(size, size, 3), classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in theirs.layers:
        for weight in layer.weights:
            if weight.name in ('bias', 'beta', 'moving_mean'):
                weight.assign(rng.normal(0, 0.1, weight.shape))
            elif weight.name in ('gamma', 'moving_variance'):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    ours = xception_flax.create_model(name, CLASSES, dropout=0.0, dtype='float64')
    outputs = [theirs.get_layer(block).output for block in BLOCKS[name]]
    return ours, theirs, keras.Model(theirs.input, [*outputs, theirs.output])


def our_variables(ours, theirs, folder):
    """The Keras model's weights, by way of a file."""
    file = folder / f'{len(list(folder.iterdir()))}.weights.h5'
    theirs.save_weights(file)
    return xception_flax.load(file, model=ours).variables


def our_blocks(name, seen):
    """The outputs of the blocks of `BLOCKS` among the captured intermediates."""

    def output(*path):
        tree = seen
        for key in path:
            tree = tree[key]
        return np.asarray(tree['__call__'][0])

    if name == 'inception_v3':
        return [output(block) for block in BLOCKS[name]]
    if name == 'resnet152':
        return [output(f'stage{s}_block{b}') for s, b in ((1, 3), (2, 8), (3, 36), (4, 3))]
    last = [f'block{i}_conv{n}' for i, n in enumerate((2, 2, 3, 3, 3), start=1)]
    return [
        np.maximum(x, 0).reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
        for x in (output(path) for path in last)
    ]


@pytest.mark.parametrize('train', [False, True], ids=['inference', 'training'])
@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'size'), [('inception_v3', 139), ('vgg16', 64), ('resnet152', 64)]
)
def test_every_block_and_the_logits_equal_those_of_keras(
    name, size, train, keras_float64, tmp_path
):
    ours, theirs, blocks = networks(name, size)
    variables = our_variables(ours, theirs, tmp_path)
    x = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3))
    trainable = [v.value for v in blocks.trainable_variables]
    stats = [v.value for v in blocks.non_trainable_variables]
    expected, new_stats = jax.jit(functools.partial(blocks.stateless_call, training=train))(
        trainable, stats, x
    )
    logits, state = jax.jit(
        functools.partial(
            ours.apply,
            train=train,
            capture_intermediates=True,
            mutable=['intermediates', 'batch_stats'],
        )
    )(variables, x)
    outputs = [*our_blocks(name, state['intermediates']), logits]
    worst = max(
        keras_weights.difference(a, np.asarray(b)) for a, b in zip(outputs, expected, strict=True)
    )
    logits = keras_weights.difference(outputs[-1], np.asarray(expected[-1]))
    print(name, size, f'train={train}: blocks {worst:.1e}, logits {logits:.1e}')
    assert worst < 1e-10
    if train and name != 'vgg16':
        for variable, value in zip(blocks.non_trainable_variables, new_stats, strict=True):
            variable.assign(value)
        expected_stats = our_variables(ours, theirs, tmp_path)['batch_stats']
        for variable, value in zip(blocks.non_trainable_variables, stats, strict=True):
            variable.assign(value)
        assert keras_weights.difference(state['batch_stats'], variables['batch_stats']) > 1e-3
        worst = keras_weights.difference(state['batch_stats'], expected_stats)
        print(f'  batch statistics {worst:.1e}')
        assert worst < 1e-12
