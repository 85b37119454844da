"""Xception against `keras.applications.Xception`, and the article's against its Keras graph.

The differences are rounding: sums in another order, 74 layers deep. Single passes are compared in
float32, relative to the largest element of each array. Ten steps are compared in float64, because
batch norm and ReLU amplify rounding over the steps until two float32 programs have nothing in
common.
"""

import functools

import article
import jax
import keras
import keras_weights
import numpy as np
import optax
import pytest

from xception_flax import config as configs
from xception_flax import create_model
from xception_flax.data.scaling import scale
from xception_flax.runtime.checkpoints import TrainState
from xception_flax.training.step import make_train_step

CLASSES = 1000
RNG = np.random.default_rng(0)


def keras_graph(variant: str) -> keras.Model:
    """Keras's own Xception, or that of the article, with random weights."""
    keras.utils.set_random_seed(0)
    if variant == 'article':
        return article.build(CLASSES)
    return keras.applications.Xception(
        weights=None,
        classes=CLASSES,
        input_tensor=keras.Input((None, None, 3)),
        classifier_activation=None,
    )


@functools.cache
def networks(variant: str):
    """Our model, the Keras model, and the Keras model with the outputs of its blocks."""
    theirs = keras_graph(variant)
    options = {'variant': variant, 'dropout': 0.0}
    ours = create_model('xception', CLASSES, **options)
    # The batch statistics of one pass become the running ones: activations keep an ordinary size.
    calibrating = create_model('xception', CLASSES, **options, bn_momentum=0.0)
    _, updates = jax.jit(lambda v, x: calibrating.apply(v, x, train=True, mutable=['batch_stats']))(
        keras_weights.from_keras(theirs), images(4, 107, 107)
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


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def our_blocks(ours, variables, x, train: bool):
    """The outputs of our blocks in the order of the graph, and the new batch statistics."""
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
    ('variant', 'size', 'train'),
    [
        pytest.param('keras', (299, 299), False, marks=pytest.mark.slow),
        pytest.param('keras', (299, 299), True, marks=pytest.mark.slow),
        pytest.param('keras', (113, 87), False, marks=pytest.mark.slow),
        ('keras', (113, 87), True),
        pytest.param('article', (299, 299), False, marks=pytest.mark.slow),
        ('article', (113, 87), True),
    ],
)
def test_every_block_and_the_logits_equal_those_of_keras(variant, size, train):
    ours, theirs, blocks = networks(variant)
    variables = keras_weights.from_keras(theirs)
    x = images(2, *size)
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
    worst, logits = max(differences.values()), differences['logits']
    print(variant, size, f'train={train}: blocks {worst:.1e}, logits {logits:.1e}')
    assert worst < 1e-5, differences

    if train:
        for variable, value in zip(blocks.non_trainable_variables, new_stats, strict=True):
            variable.assign(value)
        expected_stats = keras_weights.from_keras(theirs)['batch_stats']
        for variable, value in zip(blocks.non_trainable_variables, stats, strict=True):
            variable.assign(value)
        assert keras_weights.difference(our_stats, variables['batch_stats']) > 1e-3
        worst = keras_weights.difference(our_stats, expected_stats)
        print(f'  batch statistics {worst:.1e}')
        assert worst < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['keras', 'article'])
def test_ten_steps_of_sgd_equal_those_of_keras(variant, keras_float64):
    theirs = keras_graph(variant)
    ours = create_model('xception', CLASSES, variant=variant, dropout=0.0, dtype='float64')
    before = keras_weights.from_keras(theirs)
    rate, momentum, steps, batch_size = 0.01, 0.9, 10, 2
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (steps, batch_size, 71, 71, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, (steps, batch_size)).astype(np.int32)

    optimizer = optax.sgd(rate, momentum)
    schedule = optax.constant_schedule(rate)
    step = jax.jit(make_train_step(ours, optimizer, schedule, configs.default()))
    state = TrainState(
        step=np.int32(0),
        params=before['params'],
        batch_stats=before['batch_stats'],
        opt_state=optimizer.init(before['params']),
        ema=None,
        rng=jax.random.key_data(jax.random.key(0)),
    )
    our_losses = []
    for image, label in zip(images, labels, strict=True):
        state, metrics = step(state, {'image': image, 'label': label})
        our_losses.append(float(metrics['loss']))

    theirs.compile(
        keras.optimizers.SGD(rate, momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # Compiled, as in our step: the compiler may turn the division into a product, one bit apart.
    scaled = jax.jit(functools.partial(scale, mode='tf'))
    their_losses = [
        float(theirs.train_on_batch(np.asarray(scaled(image)), label))
        for image, label in zip(images, labels, strict=True)
    ]
    after = keras_weights.from_keras(theirs)

    losses = np.max(np.abs(np.subtract(our_losses, their_losses)) / np.abs(their_losses))
    params = relative_to_the_change(state.params, after['params'], before['params'])
    stats = relative_to_the_change(state.batch_stats, after['batch_stats'], before['batch_stats'])
    print(variant, f'ten steps: losses {losses:.1e}, weights {params:.1e}, statistics {stats:.1e}')
    assert losses < 1e-13
    assert params < 1e-12
    assert stats < 1e-12


def relative_to_the_change(ours, theirs, before) -> float:
    """The difference over all arrays together, relative to how far training has moved them."""
    ours, theirs, before = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (ours, theirs, before)
    )
    moved = np.linalg.norm(theirs - before)
    assert moved > 1e-3 * np.linalg.norm(before)
    return float(np.linalg.norm(ours - theirs) / moved)
