"""The layers that the networks share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops
from xception_flax.models import layers

DTYPES = {'float64': jnp.float64, 'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Largest differences, relative to the largest element. The value is one of two roundings; a
# gradient is a sum in another order.
TOLERANCES = {'float64': (1e-15, 1e-13), 'float32': (2**-22, 2e-5), 'bfloat16': (2**-8, 2e-2)}


class TestBatchNorm:
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 4)) * 3 + 1

    def run(self, x, group_size):
        norm = layers.BatchNorm(momentum=0.9, group_size=group_size)
        variables = norm.init(jax.random.key(0), x, train=False)
        y, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
        return y, updates['batch_stats']

    def test_one_group_is_the_whole_batch(self):
        y, stats = self.run(self.x, 0)
        mean, var = self.x.mean((0, 1, 2)), self.x.var((0, 1, 2))
        np.testing.assert_allclose(y, (self.x - mean) / np.sqrt(var + 1e-3), atol=2e-6)
        np.testing.assert_allclose(stats['mean'], 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * var, rtol=1e-5)

    def test_each_group_is_normalised_by_itself_and_running_statistics_average_over_groups(self):
        y, stats = self.run(self.x, 2)
        parts = [self.run(self.x[i : i + 2], 0) for i in range(0, 8, 2)]
        np.testing.assert_allclose(y, np.concatenate([part[0] for part in parts]), atol=2e-6)
        for name in ('mean', 'var'):
            mean = np.mean([part[1][name] for part in parts], 0)
            np.testing.assert_allclose(stats[name], mean, rtol=1e-5)

    def test_a_group_that_does_not_divide_the_batch_is_refused(self):
        with pytest.raises(ValueError, match='groups of 3'):
            self.run(self.x, 3)

    def test_an_empty_batch_is_refused(self):
        for group_size in (0, 2):
            with pytest.raises(ValueError, match='an empty batch has no mean'):
                self.run(self.x[:0], group_size)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'inference'])
@pytest.mark.parametrize(
    ('dtype', 'options', 'strides', 'dilation'),
    [
        ('float64', {}, 2, 1),
        ('float64', {'group_size': 2}, 1, 2),
        ('float64', {'use_scale': False}, 2, 1),
        ('float32', {}, 2, 1),
        ('float32', {'group_size': 2}, 1, 2),
        ('float32', {'use_scale': False}, 2, 1),
        ('bfloat16', {}, 2, 1),
    ],
)
def test_pooled_batch_norm_is_max_pooling_of_batch_norm(
    dtype, options, strides, dilation, train, float64
):
    # Not 0 in bfloat16, whose rounding makes values equal: the limit below would not exist.
    scale = np.array([1.5, -0.7, 0.9, -2.0, 0.3, 0.0][: 5 if dtype == 'bfloat16' else 6])
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.5, 2.0, (4, 7, 6, scale.size)), DTYPES[dtype])
    options = {**options, 'dtype': DTYPES[dtype]}
    pool = functools.partial(layers.max_pool, strides=strides, dilation=dilation)
    norm, pooled = layers.BatchNorm(**options), layers.PooledBatchNorm(**options, pool=pool)
    variables = norm.init(jax.random.key(0), x, train=False)
    wide = variables['params']['bias'].dtype
    scale = scale.astype(wide)
    params = {'bias': np.array([0.1, -0.2, 0.3, 0.0, 1.0, 0.5][: scale.size], wide)}
    if norm.use_scale:
        params['scale'] = scale
    stats = {'mean': (0.3 * scale + 0.2).astype(wide), 'var': np.square(scale) + wide.type(0.5)}

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
    def run(apply, params, x):
        y, updates = apply({'params': params, 'batch_stats': stats}, x)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return jnp.sum(y.astype(wide) * weights.astype(wide)), (y, updates)

    def first_norm(variables, x):
        y, updates = norm.apply(variables, x, train, mutable=['batch_stats'])
        return pool(y), updates

    def first_pool(variables, x):
        return pooled.apply(variables, x, train, mutable=['batch_stats'])

    (_, (y, updates)), grads = run(first_pool, params, x)
    (_, (expected, expected_updates)), (by_params, by_x) = run(first_norm, params, x)
    if norm.use_scale:
        # At a scale of 0 all values of a window are equal, and the gradient by the scale is
        # ambiguous: ours is the limit from above.
        above = params | {'scale': np.where(scale == 0, wide.type(2**-10), scale)}
        limit = run(first_norm, above, x)[1][0]['scale']
        by_params['scale'] = jnp.where(scale == 0, limit, by_params['scale'])
        assert (by_params['scale'] != 0).all()

    def close(ours, theirs, tolerance):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())

    of_value, of_gradient = TOLERANCES[dtype]
    close(y, expected, of_value)
    of_statistics = of_value if dtype == 'float64' else 2**-22
    jax.tree.map(functools.partial(close, tolerance=of_statistics), updates, expected_updates)
    jax.tree.map(functools.partial(close, tolerance=of_gradient), grads, (by_params, by_x))


@pytest.mark.parametrize('intermediate', ['none', 'bn_relu'])
def test_a_separable_convolution_calls_its_halves_in_the_reference_only(intermediate):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    module = layers.SeparableConv(7, strides=2, intermediate=intermediate)
    variables = module.init(jax.random.key(1), x, train=False)
    outputs, called = {}, {}
    for choice in ('auto', 'reference'):
        with ops.lowerings(choice):
            outputs[choice], seen = module.apply(variables, x, False, capture_intermediates=True)
        called[choice] = set(seen['intermediates']) - {'__call__', 'bn', 'depthwise_bn'}
    halves = {'depthwise', 'pointwise'}
    assert called['reference'] == halves
    assert called['auto'] == (set() if intermediate == 'none' else halves)  # else one operation
    np.testing.assert_allclose(outputs['auto'], outputs['reference'], rtol=0, atol=1e-6)  # float32


def test_a_dilated_max_pool_is_that_of_each_phase_of_the_grid():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))

    def by_phases(x):
        y = jnp.zeros_like(x)
        for i in (0, 1):
            for j in (0, 1):
                phase = layers.max_pool(x[:, i::2, j::2], 1, symmetric=True)
                y = y.at[:, i::2, j::2].set(phase)
        return y

    def value_and_gradient(op):
        value, pull = jax.vjp(op, x)
        return value, pull(x)[0]

    dilated = functools.partial(layers.max_pool, strides=1, dilation=2, symmetric=True)
    run = jax.jit(value_and_gradient, static_argnums=0)
    (value, gradient), (expected, expected_gradient) = run(dilated), run(by_phases)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)  # sums of up to nine
