import functools

import flax.linen as nn
import jax
import keras
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers import small_config

from xception_flax.base.errors import UserError
from xception_flax.data.scaling import scale
from xception_flax.models import Network, abstract_variables, build_model, layers
from xception_flax.training import freezing, losses
from xception_flax.training.optimizers import OPTIMIZERS, make_optimizer
from xception_flax.training.state import create_state
from xception_flax.training.step import make_train_step

BATCH = 6
RNG = np.random.default_rng(0)
IMAGES = {
    'image': RNG.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8),
    'label': RNG.integers(0, 4, BATCH).astype(np.int32),
}
RATE = 0.1


class Flow(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(layers.ConvBN(8, strides=2, name='conv1')(x, train))
        return nn.relu(layers.ConvBN(8, name='conv2')(x, train))


class Net(Network):
    """A flow of two convolutions with batch norm, a fully connected layer, a classifier."""

    num_classes: int = 4
    fc_layers: tuple[int, ...] = (8,)
    dropout: float = 0.0
    min_image_size = 1

    def features(self, x, train, features_only):
        return {'entry_flow': Flow(name='entry_flow')(x, train)}


@functools.cache
def variables():
    """Random variables of `Net`, without its initialisers, which take seconds to compile."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        values = rng.normal(size=x.shape)
        # Kernels around 0, so that logits are small and their differences exact.
        values = 0.3 * values if path[-1].key == 'kernel' else 1 + 0.3 * values
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(Net(), 8))


def config(**settings):
    return small_config(
        **{'schedule__learning_rate': RATE, 'xception__middle_repeats': 1, **settings}
    )


def walk(c, frozen, steps=1, model=None, optimizer=None):
    """The state before and after some steps on the same images, and the last metrics."""
    model = model or Net()
    schedule = optax.constant_schedule(c.schedule.learning_rate)
    optimizer = optimizer or make_optimizer(c, schedule)
    create = functools.partial(create_state, model, optimizer, 8, bool(c.ema_decay), frozen=frozen)
    state = before = jax.jit(create)(jax.random.key(0), loaded=variables())
    step = jax.jit(make_train_step(model, optimizer, schedule, c, frozen))
    for _ in range(steps):
        state, metrics = step(state, IMAGES)
    return jax.device_get((before, state, metrics))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_frozen_modules_stay_the_same_to_the_bit_and_the_others_train(name):
    # Weight decay and clipping act on all that trains. Three micro-batches, because a sum of three
    # equal statistics divided by three need not be one of them.
    c = config(
        optimizer__name=name, optimizer__weight_decay=0.1, optimizer__clip_norm=1.0, ema_decay=0.9,
        accumulation=3,
    )  # fmt: skip
    frozen = ('entry_flow/conv1', 'fc1')
    before, after, _ = walk(c, frozen, steps=3)
    for tree in ('params', 'batch_stats', 'ema'):
        old = flatten_dict(getattr(before, tree), sep='/')
        new = flatten_dict(getattr(after, tree), sep='/')
        for key, value in new.items():
            same = np.array_equal(value, old[key])
            assert same == ('conv1' in key or 'fc1' in key), f'{tree} {key}'
    trained = sum(x.size for x in jax.tree.leaves(freezing.partition(after.params, frozen)[0]))
    state_size = sum(x.size for x in jax.tree.leaves(after.opt_state) if x.ndim)
    moments = {'sgd': 1, 'rmsprop': 2, 'adamw': 2, 'lars': 1, 'lamb': 2}[name]
    assert state_size == moments * trained


def loss_of(model, variables, train):
    images = scale(IMAGES['image'], 'tf')
    logits, _ = model.apply(variables, images, train, mutable=['batch_stats'])
    return losses.softmax(logits, jax.nn.one_hot(IMAGES['label'], 4)).mean()


def test_gradients_are_those_of_the_whole_network_in_inference_mode():
    frozen = ('entry_flow',)
    before, after, metrics = walk(config(), frozen, optimizer=optax.sgd(RATE))
    loss = functools.partial(loss_of, Net(), train=False)
    value, grads = jax.jit(
        jax.value_and_grad(lambda params: loss({**before.variables('live'), 'params': params}))
    )(before.params)
    grads, _ = freezing.partition(grads, frozen)
    assert metrics['loss'] == pytest.approx(float(value), rel=1e-6)
    assert metrics['gradient_norm'] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    for key, grad in flatten_dict(grads, sep='/').items():
        if grad is not None:  # float32: rounding of the sums over the batch, and of w - rate * g
            moved = flatten_dict(before.params, sep='/')[key] - RATE * grad
            np.testing.assert_allclose(
                flatten_dict(after.params, sep='/')[key], moved, rtol=1e-5, atol=1e-6
            )


def test_frozen_statistics_are_those_of_keras_called_with_training_false():
    """Two steps of SGD on all parameters, by Keras's own training of the same small network."""
    keras.utils.set_random_seed(0)
    trunk = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, 2, 'same', use_bias=False, name='conv1'),
            keras.layers.BatchNormalization(name='bn1'),
            keras.layers.ReLU(),
            keras.layers.Conv2D(8, 3, 1, 'same', use_bias=False, name='conv2'),
            keras.layers.BatchNormalization(name='bn2'),
            keras.layers.ReLU(),
        ]
    )
    pool, fc1, logits = (
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8, 'relu'), keras.layers.Dense(4),
    )  # fmt: skip

    class Tuned(keras.Model):
        """Not a functional model: there Keras 3.15.1 forgets `training=False` while it trains."""

        def call(self, x):
            return logits(fc1(pool(trunk(x, training=False))))

    theirs = Tuned()
    theirs.trunk, theirs.head = trunk, [fc1, logits]
    theirs(np.zeros((1, 8, 8, 3)))
    values = variables()
    flow, stats = values['params']['entry_flow'], values['batch_stats']['entry_flow']

    def arrays():
        """Ours beside those of Keras, in which they are set."""
        for i, unit in enumerate(('conv1', 'conv2'), start=1):
            yield flow[unit]['conv']['kernel'], trunk.get_layer(f'conv{i}').kernel
            norm = trunk.get_layer(f'bn{i}')
            yield flow[unit]['bn']['scale'], norm.gamma
            yield flow[unit]['bn']['bias'], norm.beta
            yield stats[unit]['bn']['mean'], norm.moving_mean
            yield stats[unit]['bn']['var'], norm.moving_variance
        for name, layer in (('fc1', fc1), ('logits', logits)):
            yield values['params'][name]['kernel'], layer.kernel
            yield values['params'][name]['bias'], layer.bias

    for ours, variable in arrays():
        variable.assign(ours)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(keras.optimizers.SGD(RATE), loss)
    images = np.asarray(scale(IMAGES['image'], 'tf'))
    for _ in range(2):
        theirs.train_on_batch(images, IMAGES['label'])

    c = config(frozen_statistics=True)
    _, after, _ = walk(c, (), steps=2, optimizer=optax.sgd(RATE))
    values = {'params': after.params, 'batch_stats': after.batch_stats}
    flow, stats = values['params']['entry_flow'], values['batch_stats']['entry_flow']
    for ours, variable in arrays():
        np.testing.assert_allclose(ours, variable, rtol=1e-5, atol=1e-5)  # float32
    before = variables()['batch_stats']
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, before)
    assert (
        np.abs(
            after.params['entry_flow']['conv1']['conv']['kernel']
            - variables()['params']['entry_flow']['conv1']['conv']['kernel']
        ).max()
        > 1e-4
    )


def test_batch_norm_outside_frozen_modules_normalises_by_the_batch():
    class Rest(Net):
        """The layers after the first convolution."""

        def features(self, x, train, features_only):
            return {'conv2': nn.relu(layers.ConvBN(8, name='conv2')(x, train))}

    before, after, metrics = walk(config(), ('entry_flow/conv1',), optimizer=optax.sgd(RATE))
    params, stats = before.params, before.batch_stats
    first = {'params': params['entry_flow']['conv1'], 'batch_stats': stats['entry_flow']['conv1']}
    x = layers.ConvBN(8, strides=2).apply(first, scale(IMAGES['image'], 'tf'), False)
    inner = {**params['entry_flow'], **params}
    rest = {name: inner[name] for name in ('conv2', 'fc1', 'logits')}

    def loss(rest):
        variables = {'params': rest, 'batch_stats': {'conv2': stats['entry_flow']['conv2']}}
        logits, updates = Rest().apply(variables, nn.relu(x), True, mutable=['batch_stats'])
        return losses.softmax(logits, jax.nn.one_hot(IMAGES['label'], 4)).mean(), updates

    (value, updates), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(rest)
    assert metrics['loss'] == pytest.approx(float(value), rel=1e-6)
    moved = {**after.params['entry_flow'], **after.params}
    for name, expected in jax.tree.map(lambda w, g: w - RATE * g, rest, grads).items():
        # Biases before batch norm have gradients that are zero but for rounding: the absolute part.
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6),
            moved[name], expected,
        )  # fmt: skip
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        after.batch_stats['entry_flow']['conv2'], updates['batch_stats']['conv2'],
    )  # fmt: skip


def test_dropout_before_the_classifier_works_on_a_frozen_trunk():
    c = config(schedule__learning_rate=0.0)
    last = [
        float(walk(c, ('entry_flow',), steps, Net(dropout=0.5), optax.sgd(0.0))[2]['loss'])
        for steps in (1, 2)
    ]
    assert last[0] != last[1]


def test_the_trunk_is_everything_but_the_head():
    c = config(frozen='trunk', xception__fc_layers=(8,))
    assert freezing.frozen_modules(c, build_model(c, 4)) == (
        'entry_flow', 'exit_flow', 'middle_flow',
    )  # fmt: skip
    c = config(frozen='trunk, fc1', model='inception_v3', image_size=139)
    c.inception_v3.update(auxiliary=True, fc_layers=(8,))
    frozen = freezing.frozen_modules(c, build_model(c, 4))
    stem, mixed = [f'conv{i}' for i in range(1, 6)], [f'mixed{i}' for i in range(11)]
    assert sorted(frozen) == sorted([*stem, *mixed, 'fc1'])


def test_modules_are_frozen_by_their_full_names():
    c = config(frozen='entry_flow/conv1,exit_flow')
    frozen = freezing.frozen_modules(c, build_model(c, 4))
    assert frozen == ('entry_flow/conv1', 'exit_flow')
    tree = {'exit_flow2': {'kernel': 1}, 'exit_flow': {'kernel': 2}}
    assert freezing.partition(tree, frozen)[0] == {
        'exit_flow2': {'kernel': 1}, 'exit_flow': {'kernel': None},
    }  # fmt: skip


@pytest.mark.parametrize(
    ('frozen', 'says'),
    [
        (
            'midle_flow/block1',
            "no module 'midle_flow/block1'; did you mean 'middle_flow/block1'",
        ),
        ('trunks', "no module 'trunks'; did you mean 'trunk'"),
        ('42', r"choose from \['entry_flow', 'exit_flow', 'logits', 'middle_flow', 'trunk'\]"),
        ('trunk,logits', 'leaves nothing to train'),
    ],
)
def test_an_unknown_module_or_nothing_left_is_an_error(frozen, says):
    c = config(frozen=frozen)
    with pytest.raises(UserError, match=says):
        freezing.frozen_modules(c, build_model(c, 4))
