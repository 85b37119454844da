"""Max pooling: its implementations equal the reference to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops
from xception_flax.ops import pooling


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def value_and_gradient(op, x, grad, window, strides, padding):
    value, pull = jax.vjp(lambda x: op(x, window, strides, padding), x)
    return value, *pull(grad)


@pytest.mark.parametrize(
    ('shape', 'window', 'strides', 'padding'),
    [
        ((2, 8, 9, 3), 3, 2, ((0, 1), (1, 1))),
        ((2, 9, 8, 3), 3, 2, ((1, 1), (0, 1))),
        ((2, 9, 8, 3), 3, 2, ((0, 0), (0, 0))),
        ((1, 7, 7, 2), 3, 1, ((1, 1), (1, 1))),
        ((1, 8, 8, 2), 2, 2, ((0, 0), (0, 0))),
        ((1, 9, 9, 2), 2, 2, ((0, 0), (0, 0))),  # no window has the last row
        ((1, 11, 8, 2), 2, 3, ((0, 0), (0, 0))),  # nor some rows in between
        ((1, 9, 11, 2), 5, 3, ((2, 2), (1, 3))),
        ((1, 1, 2, 1), 3, 2, ((1, 1), (0, 1))),
    ],
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_equals_the_reference_in_value_and_gradient(shape, window, strides, padding, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 2, shape), dtype)  # most windows have several maxima
    output = jax.eval_shape(lambda x: pooling.padded(x, window, strides, padding), x)
    # Whole numbers: sums are exact in any order.
    grad = jnp.asarray(rng.integers(-9, 9, output.shape), dtype)
    expected = value_and_gradient(pooling.padded, x, grad, window, strides, padding)
    for lowering in (pooling.chosen, pooling.windowed):
        found = value_and_gradient(lowering, x, grad, window, strides, padding)
        for ours, array in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, array)


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('side', [8, 9])
def test_padding_by_name_is_that_of_xla(padding, side):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, side, side, 2)), jnp.float32)
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    np.testing.assert_array_equal(ops.max_pool(x, 3, 2, padding), expected)


def test_the_first_of_equal_values_gets_the_gradient():
    grad = jax.grad(lambda x: ops.max_pool(x, 2, 2, 'VALID').sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(grad[0, :, :, 0], [[1, 0], [0, 0]])
