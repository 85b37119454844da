"""Xception against `keras.applications.Xception`, and the article's against its Keras graph.

The differences that remain are rounding: float32, other orders of summation, 74 layers deep. They
are relative to the largest element of each array.
"""

import functools

import article
import jax
import keras
import keras_weights
import numpy as np
import pytest

from xception_flax import create_model

CLASSES = 1000
RNG = np.random.default_rng(0)


@functools.cache
def networks(variant: str, dtype: str = 'float32'):
    """Our model, the Keras model, and a function that gives the outputs of all its blocks."""
    keras.utils.set_random_seed(0)
    keras.config.set_floatx(dtype)
    if variant == 'keras':
        theirs = keras.applications.Xception(
            weights=None,
            classes=CLASSES,
            input_tensor=keras.Input((None, None, 3)),
            classifier_activation=None,
        )
    else:
        theirs = article.build(CLASSES)
    options = {'variant': variant, 'dropout': 0.0, 'dtype': dtype}
    ours = create_model('xception', CLASSES, **options)
    # One pass whose batch statistics become the running ones: activations of ordinary size.
    calibrating = create_model('xception', CLASSES, **options, bn_momentum=0.0)
    _, updates = jax.jit(lambda v, x: calibrating.apply(v, x, train=True, mutable=['batch_stats']))(
        keras_weights.from_keras(theirs), pictures(4, 107, 107)
    )
    keras_weights.randomise(theirs, updates, RNG)

    adds = [layer.output for layer in theirs.layers if isinstance(layer, keras.layers.Add)]
    features = next(
        layer.input
        for layer in theirs.layers
        if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    )
    conv2 = next(
        bn.output for path, _, bn in keras_weights.units(theirs) if path == 'entry_flow/conv2'
    )
    blocks = keras.Model(theirs.input, [conv2, *adds, features, theirs.output])
    return ours, theirs, blocks


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def our_blocks(ours, variables, x, train: bool):
    """The outputs of our blocks in the order of the graph, and the batch statistics."""
    _, state = jax.jit(
        functools.partial(
            ours.apply,
            train=train,
            capture_intermediates=True,
            mutable=['intermediates', 'batch_stats'],
        )
    )(variables, x)
    seen = jax.tree.map(np.asarray, state['intermediates'])
    outputs = {'conv2': seen['entry_flow']['conv2']['__call__'][0]}
    for flow, count in (('entry_flow', 3), ('middle_flow', 8), ('exit_flow', 1)):
        for i in range(1, count + 1):
            output = seen[flow][f'block{i}']['__call__'][0]
            outputs[f'{flow}/block{i}'] = output[0] if isinstance(output, tuple) else output
    outputs['features'] = seen['exit_flow']['__call__'][0]
    outputs['logits'] = seen['__call__'][0]
    return outputs, state['batch_stats']


@pytest.mark.parametrize(
    ('variant', 'size', 'train', 'tolerance'),
    [
        ('keras', (299, 299), False, 1e-5),
        ('keras', (299, 299), True, 2e-5),
        ('keras', (113, 87), False, 1e-5),
        ('keras', (113, 87), True, 2e-4),
        ('article', (299, 299), False, 1e-5),
        ('article', (113, 87), True, 2e-4),
    ],
)
def test_every_block_and_the_logits_agree(variant, size, train, tolerance, record_property):
    ours, theirs, blocks = networks(variant)
    variables = keras_weights.from_keras(theirs)
    x = pictures(2, *size)
    trainable = [v.value for v in blocks.trainable_variables]
    stats = [v.value for v in blocks.non_trainable_variables]
    expected, new_stats = jax.jit(functools.partial(blocks.stateless_call, training=train))(
        trainable, stats, x
    )
    outputs, our_stats = our_blocks(ours, variables, x, train)

    assert len(outputs) == len(expected) == 15
    for (name, output), array in zip(outputs.items(), expected, strict=True):
        assert output.shape == array.shape, name
    differences = {
        name: keras_weights.difference(output, np.asarray(array))
        for (name, output), array in zip(outputs.items(), expected, strict=True)
    }
    report = {
        k: f'{differences[k]:.1e}' for k in ('entry_flow/block3', 'middle_flow/block8', 'logits')
    }
    record_property('differences', report)
    print(variant, size, 'training' if train else 'inference', report)
    assert max(differences.values()) < tolerance, differences

    if train:
        for variable, value in zip(blocks.non_trainable_variables, new_stats, strict=True):
            variable.assign(value)
        expected_stats = keras_weights.from_keras(theirs)['batch_stats']
        for variable, value in zip(blocks.non_trainable_variables, stats, strict=True):
            variable.assign(value)
        assert keras_weights.difference(our_stats, variables['batch_stats']) > 1e-3
        worst = keras_weights.difference(our_stats, expected_stats)
        print('  batch statistics', f'{worst:.1e}')
        assert worst < tolerance
