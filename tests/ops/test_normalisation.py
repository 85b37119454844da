"""The arithmetic of batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops


def plain(x, mean, multiplier, bias):
    return (x - mean) * multiplier + bias


@pytest.mark.parametrize('shape', [(2, 3, 5, 4, 6), (2, 3, 6)])
@pytest.mark.parametrize('grouped', [True, False])
def test_equals_the_plain_expression_in_value_and_gradients(shape, grouped):
    rng = np.random.default_rng(0)
    channels = shape[-1:]
    statistics = (shape[0], *(1,) * (len(shape) - 2), shape[-1]) if grouped else channels
    arrays = [
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in (shape, statistics, statistics, channels)
    ]
    grad = jnp.asarray(rng.normal(size=shape), jnp.float32)
    (found, pull), (expected, pull_expected) = (
        jax.vjp(op, *arrays) for op in (ops.normalise, plain)
    )
    np.testing.assert_array_equal(found, expected)
    for ours, array in zip(pull(grad), pull_expected(grad), strict=True):
        np.testing.assert_allclose(ours, array, atol=2e-6 * np.abs(array).max())  # sums in float32


def test_gradients_have_the_types_of_their_operands():
    x = jnp.ones((2, 3, 4), jnp.bfloat16)
    rest = jnp.ones((2, 1, 4)), jnp.ones((2, 1, 4)), jnp.ones(4)
    value, pull = jax.vjp(ops.normalise, x, *rest)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in pull(value)] == [a.dtype for a in (x, *rest)]
