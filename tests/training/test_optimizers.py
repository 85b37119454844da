import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

from xception_flax.config import Durations
from xception_flax.training import optimizers

PARAMS = {
    'conv': {'kernel': jnp.array([1.0, -2.0])},
    'bn': {'scale': jnp.array([1.0]), 'bias': jnp.array([0.5])},
}
GRADS = {
    'conv': {'kernel': jnp.array([0.1, 0.2])},
    'bn': {'scale': jnp.array([0.3]), 'bias': jnp.array([-0.1])},
}


def config(**settings):
    base = {'batch_size': 10, 'total_steps': 100, 'schedule__learning_rate': 0.1}
    return small_config(**{**base, **settings})


def walk(c, steps):
    """The parameters after each of some steps with the same gradient."""
    durations = Durations.resolve(c, examples=50)
    optimizer = optimizers.make_optimizer(c, optimizers.make_schedule(c, durations))
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADS, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        yield params


def by_hand(update, steps):
    """The kernel and the scale after some steps of `update(w, g, memory, l2)`."""
    kernel, scale = np.array([1.0, -2.0]), np.array([1.0])
    memory_k, memory_s = {}, {}
    for _ in range(steps):
        kernel = update(kernel, np.array([0.1, 0.2]), memory_k, 0.01)
        scale = update(scale, np.array([0.3]), memory_s, 0.0)  # not decayed
    return kernel, scale


def sgd(w, g, memory, l2):
    memory['v'] = 0.9 * memory.get('v', 0) + g + l2 * w
    return w - 0.1 * memory['v']


def nesterov(w, g, memory, l2):
    g = g + l2 * w
    memory['v'] = 0.9 * memory.get('v', 0) + g
    return w - 0.1 * (g + 0.9 * memory['v'])


def rmsprop(w, g, memory, l2):
    """TensorFlow's: epsilon in the root, mean square from 1, rate inside the momentum."""
    g = g + l2 * w
    memory['ms'] = 0.8 * memory.get('ms', 1.0) + 0.2 * g * g
    memory['v'] = 0.9 * memory.get('v', 0) + 0.1 * g / np.sqrt(memory['ms'] + 1.0)
    return w - memory['v']


def adamw(w, g, memory, l2):
    memory['t'] = memory.get('t', 0) + 1
    memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * g
    memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * g * g
    m, v = memory['m'] / (1 - 0.9 ** memory['t']), memory['v'] / (1 - 0.999 ** memory['t'])
    return w - 0.1 * (m / (np.sqrt(v) + 1.0) + l2 * w)


@pytest.mark.parametrize(
    ('name', 'settings', 'update'),
    [
        ('sgd', {}, sgd),
        ('sgd', {'optimizer__nesterov': True}, nesterov),
        ('rmsprop', {'optimizer__epsilon': 1.0, 'optimizer__decay': 0.8}, rmsprop),
        ('adamw', {'optimizer__epsilon': 1.0}, adamw),
    ],
)
def test_updates_follow_the_formula(name, settings, update):
    c = config(optimizer__name=name, optimizer__weight_decay=0.01, **settings)
    *_, params = walk(c, 5)
    kernel, scale = by_hand(update, 5)
    np.testing.assert_allclose(params['conv']['kernel'], kernel, rtol=1e-5)
    np.testing.assert_allclose(params['bn']['scale'], scale, rtol=1e-5)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_layerwise_optimizers_scale_kernels_by_their_norm(name):
    c = config(optimizer__name=name, optimizer__momentum=0.0, optimizer__weight_decay=0.0)
    params = next(walk(c, 1))
    step = np.linalg.norm(params['conv']['kernel'] - PARAMS['conv']['kernel'])
    trust = {'lars': 0.001, 'lamb': 1.0}[name]  # LARS's coefficient
    assert step == pytest.approx(0.1 * trust * np.sqrt(5), rel=1e-3)  # float32 near 1
    # Batch norm goes by plain SGD, or by plain Adam, whose first step is the learning rate.
    scale = 1 - 0.1 * {'lars': 0.3, 'lamb': 1.0}[name]
    np.testing.assert_allclose(params['bn']['scale'], scale, rtol=1e-6)


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_depthwise_kernels_are_decayed_unless_left_out(name):
    params = {
        part: {'kernel': jnp.full(3, 2.0), 'bias': jnp.ones(3)} for part in ('depthwise', 'conv')
    }
    still = jax.tree.map(jnp.zeros_like, params)
    moved = {}
    for everywhere in (True, False):
        c = config(
            optimizer__name=name, optimizer__weight_decay=0.1,
            optimizer__decay_depthwise=everywhere,
        )  # fmt: skip
        optimizer = optimizers.make_optimizer(c, lambda step: 0.01)
        updates, _ = optimizer.update(still, optimizer.init(params), params)
        moved[everywhere] = jax.tree.map(lambda x: bool(x.any()), updates)
    kernel_only, none = {'kernel': True, 'bias': False}, {'kernel': False, 'bias': False}
    assert moved[True] == {'depthwise': kernel_only, 'conv': kernel_only}
    assert moved[False] == {'depthwise': none, 'conv': kernel_only}


def test_lamb_moves_a_bias_from_zero_as_adam_does():
    c = config(optimizer__name='lamb', schedule__learning_rate=0.01)
    optimizer = optimizers.make_optimizer(c, lambda step: 0.01)
    params = {'bn': {'bias': jnp.zeros(1)}, 'conv': {'kernel': jnp.ones(1)}}
    state = optimizer.init(params)
    for _ in range(200):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params['bn']['bias'], -2.0, rtol=1e-4)


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    norm = np.sqrt(0.01 + 0.04 + 0.09 + 0.01)
    params = next(walk(config(optimizer__clip_norm=0.1, optimizer__momentum=0.0), 1))
    np.testing.assert_allclose(params['bn']['scale'], 1 - 0.1 * 0.3 * 0.1 / norm, rtol=1e-6)
    params = next(walk(config(optimizer__clip_norm=10.0, optimizer__momentum=0.0), 1))
    np.testing.assert_allclose(params['bn']['scale'], 1 - 0.1 * 0.3, rtol=1e-6)


def learning_rates(steps, **settings):
    c = config(**settings)
    schedule = optimizers.make_schedule(c, Durations.resolve(c, examples=50))
    return [float(schedule(step)) for step in steps]


def test_the_papers_schedule_falls_by_its_factor_every_two_epochs():
    settings = {'schedule__name': 'exponential', 'schedule__learning_rate': 0.045}
    settings |= {'schedule__decay_rate': 0.94, 'schedule__decay_epochs': 2.0}  # 10 steps
    expected = [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94**3]
    assert learning_rates([0, 9, 10, 39], **settings) == pytest.approx(expected, rel=1e-6)
    smooth = learning_rates([5], **settings, schedule__staircase=False)
    assert smooth == pytest.approx([0.045 * 0.94**0.5], rel=1e-6)
    last = learning_rates([1000], **settings, schedule__final=0.5)
    assert last == pytest.approx([0.0225], rel=1e-6)


def test_cosine_and_warm_up():
    settings = {'schedule__name': 'cosine', 'schedule__warmup_steps': 20}
    assert learning_rates([0, 10, 20, 60, 100], **settings) == pytest.approx(
        [0, 0.05, 0.1, 0.05, 0], abs=1e-7
    )
    constant = learning_rates([0, 1, 4, 50], schedule__warmup_steps=4)
    assert constant == pytest.approx([0, 0.025, 0.1, 0.1], abs=1e-7)
