"""Blocks that compute something in another order than they are written in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax.models import layers


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize(
    ('options', 'strides', 'dilation'),
    [
        ({}, 2, 1),
        ({'group_size': 2}, 1, 2),
        ({'use_scale': False}, 2, 1),
        ({'dtype': jnp.bfloat16}, 2, 1),
    ],
)
def test_batch_norm_with_a_pool_is_that_pool_of_batch_norm(options, strides, dilation, train):
    norm = layers.BatchNorm(**options)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.5, 2.0, (4, 7, 6, 5)), options.get('dtype', jnp.float32))
    variables = norm.init(jax.random.key(0), x, train=False)
    # Below 0 the order of values turns; at 0 all would be equal, with any gradient by the scale.
    scale = jnp.asarray([1.5, -0.7, 0.9, -2.0, 0.3])
    variables['params'] |= {'bias': jnp.asarray([0.1, -0.2, 0.3, 0.0, 1.0])}
    if 'scale' in variables['params']:
        variables['params'] |= {'scale': scale}
    variables['batch_stats'] |= {'mean': 0.3 * scale + 0.2, 'var': jnp.square(scale) + 0.5}
    pool = functools.partial(layers.max_pool, strides=strides, dilation=dilation)

    def pooled(params, x, first):
        inputs = {**variables, 'params': params}
        call = functools.partial(norm.apply, inputs, x, train, mutable=['batch_stats'])
        y, stats = call(pool=pool) if first else call()
        y = y if first else pool(y)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), (y, stats)

    value = jax.jit(jax.value_and_grad(pooled, argnums=(0, 1), has_aux=True), static_argnums=2)
    (_, (y, stats)), grads = value(variables['params'], x, True)
    (_, (expected, expected_stats)), expected_grads = value(variables['params'], x, False)
    narrow = options.get('dtype')

    def close(ours, theirs, tolerance):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())

    # Rounding keeps the order of values; only XLA's choice of what to fuse makes a difference.
    close(y, expected, 2**-8 if narrow else 2**-22)
    jax.tree.map(functools.partial(close, tolerance=2**-22), stats, expected_stats)
    # These are sums in another order.
    tolerance = 2e-2 if narrow else 2e-5
    jax.tree.map(functools.partial(close, tolerance=tolerance), grads, expected_grads)
