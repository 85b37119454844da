"""Depthwise convolution: its implementations agree, and each backend gets its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops
from xception_flax.ops import depthwise


def operands(shape, kernel=3, strides=1, dtype=jnp.float32):
    """Images, a kernel, and a gradient of the output."""
    rng = np.random.default_rng(0)
    n, height, width, channels = shape
    output = (n, -(-height // strides), -(-width // strides), channels)
    shapes = (shape, (kernel, kernel, 1, channels), output)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


@pytest.mark.parametrize(
    ('shape', 'kernel', 'strides', 'dilation'),
    [
        ((2, 8, 8, 5), 1, 1, 1),
        ((2, 8, 8, 5), 3, 1, 1),
        ((2, 2, 3, 1), 3, 1, 1),
        ((3, 7, 10, 16), 5, 1, 1),
        ((1, 1, 1, 3), 3, 2, 1),
        ((2, 8, 8, 5), 3, 2, 1),
        ((3, 7, 10, 4), 5, 2, 1),
        ((2, 8, 8, 5), 3, 1, 2),
        ((2, 2, 3, 1), 3, 1, 4),
        ((3, 7, 10, 4), 3, 2, 2),
        ((3, 7, 10, 4), 3, 3, 2),
    ],
)
# bfloat16 has 8 bits; the shifted form rounds every product, the reference only the sum.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_shifted_equals_the_reference_in_value_and_gradient(
    shape, kernel, strides, dilation, dtype, tolerance
):
    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(op, x, k, grad):
        value, pull = jax.vjp(lambda x, k: op(x, k, strides, dilation), x, k)
        return value, *pull(grad)

    arrays = operands(shape, kernel, strides, dtype)
    wide = [a.astype(jnp.float32) for a in arrays]
    expected = value_and_gradients(depthwise.convolution, *wide)
    for ours, array in zip(value_and_gradients(depthwise.shifted, *arrays), expected, strict=True):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float32) - array).max()
        assert error <= tolerance * np.abs(array).max()


def test_one_channel_equals_a_result_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 1, 0, 0].set(1.0)  # the pixel above
    np.testing.assert_array_equal(
        ops.depthwise_conv(x, kernel)[0, :, :, 0], [[0, 0, 0], [0, 1, 2], [3, 4, 5]]
    )
    np.testing.assert_array_equal(
        ops.depthwise_conv(x, kernel, strides=2)[0, :, :, 0], [[0, 0], [3, 5]]
    )
    np.testing.assert_array_equal(  # two above
        ops.depthwise_conv(x, kernel, dilation=2)[0, :, :, 0], [[0, 0, 0], [0, 0, 0], [0, 1, 2]]
    )


def test_the_implementation_depends_on_the_backend_and_the_choice():
    x, k, _ = operands((1, 4, 4, 2))

    def text(choice, platform):
        with ops.lowerings(choice):
            traced = jax.jit(lambda x, k: ops.depthwise_conv(x, k)).trace(x, k)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert 'stablehlo.convolution' not in text('auto', 'cpu')
    assert 'stablehlo.convolution' in text('auto', 'tpu')
    assert 'stablehlo.convolution' in text('reference', 'cpu')
