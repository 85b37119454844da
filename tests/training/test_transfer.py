import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from xception_flax import config as configs
from xception_flax import pretrained
from xception_flax.config.checks import build_model
from xception_flax.data.scaling import scale
from xception_flax.models import layers
from xception_flax.runtime.errors import UserError
from xception_flax.training import losses, transfer
from xception_flax.training.optimizers import OPTIMIZERS, make_optimizer
from xception_flax.training.state import create_state
from xception_flax.training.step import make_train_step

BATCH = 6
RNG = np.random.default_rng(0)
PICTURES = {
    'image': RNG.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8),
    'label': RNG.integers(0, 4, BATCH).astype(np.int32),
}
RATE = 0.1


class Flow(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(layers.ConvBN(8, strides=2, name='conv1')(x, train))
        return nn.relu(layers.ConvBN(8, name='conv2')(x, train))


class Net(nn.Module):
    """A flow of two convolutions with batch norm, a fully connected layer, a classifier."""

    num_classes: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = Flow(name='entry_flow')(x, train)
        return layers.classify(x, self.num_classes, (8,), self.dropout, jnp.float32, train)


def random(shapes):
    """Arrays of these shapes; to draw them by the network's own initialisers takes seconds."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 1 + 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


@functools.cache
def variables():
    """Variables of `Net`."""
    x = jnp.zeros((1, 8, 8, 3))
    return random(jax.eval_shape(lambda: Net().init(jax.random.key(0), x)))


def config(**settings):
    c = configs.default()
    c.image_size = 16
    c.ema_decay = 0.0
    c.xception.update(stem='small', width=0.125, middle_repeats=1)
    c.schedule.learning_rate = RATE
    c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in settings.items()})
    return c


def walk(c, frozen, steps=1, model=None, optimizer=None):
    """The state before some steps on the same pictures, that after them, and the last metrics."""
    model = model or Net()
    schedule = optax.constant_schedule(c.schedule.learning_rate)
    optimizer = optimizer or make_optimizer(c, schedule)
    create = functools.partial(create_state, model, optimizer, 8, bool(c.ema_decay), frozen=frozen)
    state = before = jax.jit(create)(jax.random.key(0), loaded=variables())
    step = jax.jit(make_train_step(model, optimizer, schedule, c, frozen))
    for _ in range(steps):
        state, metrics = step(state, PICTURES)
    return jax.device_get((before, state, metrics))


# Frozen parts.


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_what_is_frozen_stays_the_same_to_the_bit_and_the_rest_learns(name):
    # Weight decay and clipping act on all that learns; three micro-batches, as a sum of three
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
    learning = sum(x.size for x in jax.tree.leaves(transfer.split(after.params, frozen)[0]))
    state_size = sum(x.size for x in jax.tree.leaves(after.opt_state) if x.ndim)
    moments = {'sgd': 1, 'rmsprop': 2, 'adamw': 2, 'lars': 1, 'lamb': 2}[name]
    assert state_size == moments * learning


def loss_of(model, variables, train):
    pictures = scale(PICTURES['image'], 'tf')
    logits, _ = model.apply(variables, pictures, train, mutable=['batch_stats'])
    return losses.softmax(logits, jax.nn.one_hot(PICTURES['label'], 4)).mean()


def test_gradients_are_those_of_the_whole_network_in_inference_mode():
    frozen = ('entry_flow',)
    before, after, metrics = walk(config(), frozen, optimizer=optax.sgd(RATE))
    loss = functools.partial(loss_of, Net(), train=False)
    value, grads = jax.jit(
        jax.value_and_grad(lambda params: loss({**before.variables('live'), 'params': params}))
    )(before.params)
    grads, _ = transfer.split(grads, frozen)
    assert metrics['loss'] == pytest.approx(float(value), rel=1e-6)
    assert metrics['gradient_norm'] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    for key, grad in flatten_dict(grads, sep='/').items():
        if grad is not None:  # float32: rounding of the sums over the batch, and of w - rate * g
            moved = flatten_dict(before.params, sep='/')[key] - RATE * grad
            np.testing.assert_allclose(
                flatten_dict(after.params, sep='/')[key], moved, rtol=1e-5, atol=1e-6
            )


def test_beside_a_frozen_module_batch_norm_still_normalises_by_the_batch():
    class Rest(nn.Module):
        """All that follows the first convolution."""

        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(layers.ConvBN(8, name='conv2')(x, train))
            return layers.classify(x, 4, (8,), 0.0, jnp.float32, train)

    before, after, metrics = walk(config(), ('entry_flow/conv1',), optimizer=optax.sgd(RATE))
    params, stats = before.params, before.batch_stats
    first = {'params': params['entry_flow']['conv1'], 'batch_stats': stats['entry_flow']['conv1']}
    x = layers.ConvBN(8, strides=2).apply(first, scale(PICTURES['image'], 'tf'), False)
    inner = {**params['entry_flow'], **params}
    rest = {name: inner[name] for name in ('conv2', 'fc1', 'logits')}

    def loss(rest):
        variables = {'params': rest, 'batch_stats': {'conv2': stats['entry_flow']['conv2']}}
        logits, updates = Rest().apply(variables, nn.relu(x), True, mutable=['batch_stats'])
        return losses.softmax(logits, jax.nn.one_hot(PICTURES['label'], 4)).mean(), updates

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


def test_the_trunk_is_all_but_the_classifiers_and_their_layers():
    c = config(frozen='trunk', xception__fc_layers=(8,))
    assert transfer.frozen_modules(c, build_model(c, 4)) == (
        'entry_flow', 'exit_flow', 'middle_flow',
    )  # fmt: skip
    c = config(frozen='trunk, fc1', model='inception_v3', image_size=139)
    c.inception_v3.update(auxiliary=True, fc_layers=(8,))
    frozen = transfer.frozen_modules(c, build_model(c, 4))
    stem, mixed = [f'conv{i}' for i in range(1, 6)], [f'mixed{i}' for i in range(11)]
    assert sorted(frozen) == sorted([*stem, *mixed, 'fc1'])


def test_modules_are_frozen_by_their_whole_names():
    c = config(frozen='entry_flow/conv1,exit_flow')
    frozen = transfer.frozen_modules(c, build_model(c, 4))
    assert frozen == ('entry_flow/conv1', 'exit_flow')
    tree = {'exit_flow2': {'kernel': 1}, 'exit_flow': {'kernel': 2}}
    assert transfer.split(tree, frozen)[0] == {
        'exit_flow2': {'kernel': 1}, 'exit_flow': {'kernel': None},
    }  # fmt: skip


@pytest.mark.parametrize(
    ('frozen', 'says'),
    [
        ('midle_flow/block1', "no part 'midle_flow/block1'; did you mean 'middle_flow/block1'"),
        ('trunks', "no part 'trunks'; did you mean 'trunk'"),
        ('42', r"choose from \['entry_flow', 'exit_flow', 'logits', 'middle_flow', 'trunk'\]"),
        ('trunk,logits', 'leaves nothing to learn'),
    ],
)
def test_what_cannot_be_frozen_is_told(frozen, says):
    c = config(frozen=frozen)
    with pytest.raises(UserError, match=says):
        transfer.frozen_modules(c, build_model(c, 4))


# Learning rates by depth.


def test_each_block_has_the_learning_rate_of_its_depth():
    c = config(optimizer__layer_decay=0.5, xception__middle_repeats=2)
    order = [
        'entry_flow/conv1', 'entry_flow/conv2', 'entry_flow/block1', 'entry_flow/block2',
        'entry_flow/block3', 'middle_flow/block1', 'middle_flow/block2', 'exit_flow/block1',
        'exit_flow/sepconv3', 'exit_flow/sepconv4', 'logits',
    ]  # fmt: skip
    expected = {block: 0.5**depth for depth, block in enumerate(reversed(order))}
    assert transfer.layer_multipliers(c, build_model(c, 4)) == expected


def test_an_auxiliary_classifier_has_the_whole_rate_and_is_no_block():
    c = config(optimizer__layer_decay=0.5, model='inception_v3', image_size=139)
    c.inception_v3.update(auxiliary=True, fc_layers=(8,))
    stem, mixed = [f'conv{i}' for i in range(1, 6)], [f'mixed{i}' for i in range(11)]
    order = [*stem, *mixed, 'fc1', 'logits']
    expected = {block: 0.5**depth for depth, block in enumerate(reversed(order))}
    assert transfer.layer_multipliers(c, build_model(c, 4)) == {**expected, 'aux': 1.0}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_updates_are_scaled_exactly(name):
    c = config(
        optimizer__name=name, optimizer__weight_decay=0.1, optimizer__layer_decay=0.7,
        optimizer__clip_norm=1.0,
    )  # fmt: skip
    multipliers = transfer.layer_multipliers(c, Net())
    assert multipliers == {
        'logits': 1.0, 'fc1': 0.7, 'entry_flow/conv2': 0.7**2, 'entry_flow/conv1': 0.7**3,
    }  # fmt: skip
    params = variables()['params']
    grads = jax.tree.map(lambda x: x + 1, params)
    schedule = optax.constant_schedule(RATE)
    plain, layered = make_optimizer(c, schedule), make_optimizer(c, schedule, multipliers)
    state = layered_state = plain.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(layered.init(params))
    for _ in range(3):
        updates, state = plain.update(grads, state, params)
        scaled, layered_state = layered.update(grads, layered_state, params)
        scaled = flatten_dict(scaled, sep='/')
        for key, update in flatten_dict(updates, sep='/').items():
            (block,) = (block for block in multipliers if key.startswith(f'{block}/'))
            expected = update * np.float32(multipliers[block])
            np.testing.assert_array_equal(scaled[key], expected, err_msg=key)


# Weights to start from.


@functools.cache
def shapes(num_classes, **settings):
    c = config(**settings)
    model = build_model(c, num_classes)
    x = jnp.zeros((1, c.image_size, c.image_size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


@pytest.fixture
def weights(monkeypatch):
    """Weights of a network for 4 classes with one fully connected layer, all of them random."""
    settings = {'xception__fc_layers': (8,), 'xception__dropout': 0.1}
    variables = random(shapes(4, **settings))
    monkeypatch.setattr(
        pretrained, 'load_pretrained', lambda path, new_head: (None, variables, config(**settings))
    )
    return variables


def load(num_classes, **settings):
    """What is loaded, by its path, and what is said."""
    c = config(init__weights='W', **settings)
    loaded, origin = transfer.load(c, shapes(num_classes, **settings))
    return flatten_dict(loaded, sep='/'), origin


@pytest.mark.parametrize(
    ('num_classes', 'settings', 'drawn'),
    [
        (4, {'xception__fc_layers': (8,)}, ()),
        (4, {'xception__fc_layers': (8,), 'init__new_head': True}, ('logits',)),
        (5, {'xception__fc_layers': (8,)}, ('logits',)),
        (5, {'xception__fc_layers': (6,)}, ('fc1', 'logits')),
        (4, {'xception__fc_layers': (8, 8)}, ('fc2',)),
        (4, {}, ('logits',)),  # which follows other features, of another number
    ],
)
def test_all_is_loaded_but_what_of_the_head_does_not_fit(weights, num_classes, settings, drawn):
    found, origin = load(num_classes, **settings)
    assert set(found) == set(flatten_dict(shapes(num_classes, **settings), sep='/'))
    for key, value in flatten_dict(weights, sep='/').items():
        if key in found and not any(f'/{layer}/' in key for layer in drawn):
            np.testing.assert_array_equal(found[key], value)
    missing = {key.split('/')[1] for key, value in found.items() if value is None}
    assert missing == set(drawn)
    expected = f'; drawn anew: {", ".join(drawn)}' if drawn else ''
    assert origin == f'starting from W{expected}'


def test_a_state_starts_from_the_weights_the_statistics_and_their_averages(weights):
    c = config(xception__fc_layers=(8,), init__new_head=True)
    model, wanted = build_model(c, 4), shapes(4, xception__fc_layers=(8,))
    loaded, _ = transfer.load(c, wanted)
    create = functools.partial(create_state, model, optax.sgd(RATE), 16, True)
    state = jax.jit(create)(jax.random.key(0), loaded=loaded)
    drawn = state.params['logits']
    limit = (6 / (8 + 4)) ** 0.5  # Glorot's
    assert 0.5 * limit < np.abs(drawn['kernel']).max() < limit
    assert not np.any(drawn['bias'])
    expected = {**weights, 'params': {**weights['params'], 'logits': drawn}}
    jax.tree.map(np.testing.assert_array_equal, state.variables('live'), expected)
    jax.tree.map(np.testing.assert_array_equal, state.variables('averaged'), expected)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        (
            {'model': 'resnet152', 'image_size': 32},
            r'another network .* --config.model=xception$',
        ),
        ({'preprocessing': 'torch'}, r'give --config.preprocessing=tf$'),
        ({'xception__stem': 'imagenet', 'image_size': 71}, r'give --config.xception.stem=small$'),
        (
            {'xception__width': 0.25, 'xception__residual': False},
            r'give --config.xception.residual=True --config.xception.width=0.125$',
        ),
    ],
)
def test_weights_of_another_network_are_told_with_what_to_give(weights, settings, says):
    with pytest.raises(UserError, match=says) as caught:
        load(4, **settings)
    assert '\n' not in str(caught.value)


def test_arrays_that_do_not_fit_are_named(weights):
    conv = weights['params']['entry_flow']['conv1']['conv']
    conv['kernel'] = np.zeros((5, 5, 3, 8))
    del weights['batch_stats']['exit_flow']['sepconv4']['bn']['mean']
    with pytest.raises(UserError, match='2 of its arrays differ') as caught:
        load(4, xception__fc_layers=(8,))
    message = str(caught.value)
    assert 'params/entry_flow/conv1/conv/kernel (5, 5, 3, 8) instead of (3, 3, 3, 8)' in message
    assert 'batch_stats/exit_flow/sepconv4/bn/mean missing instead of (256,)' in message
