import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops
from xception_flax.ops import depthwise


def operands(shape, kernel=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(keys[0], shape, dtype),
        jax.random.normal(keys[1], (kernel, kernel, 1, shape[-1]), dtype),
        jax.random.normal(keys[2], shape, dtype),
    )


@pytest.mark.parametrize('shape', [(2, 8, 8, 5), (1, 1, 1, 3), (3, 7, 10, 16), (2, 2, 3, 1)])
@pytest.mark.parametrize('kernel', [1, 3, 5])
# bfloat16 keeps 8 bits; the shifted form rounds each of the products, the reference once.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_shifted_equals_the_reference_in_value_and_gradient(shape, kernel, dtype, tolerance):
    x, k, grad = operands(shape, kernel, dtype)
    wide = [a.astype(jnp.float32) for a in (x, k, grad)]
    expected, pull_expected = jax.vjp(depthwise.convolution, *wide[:2])
    value, pull = jax.vjp(depthwise.shifted, x, k)
    for ours, reference in zip(
        (value, *pull(grad)), (expected, *pull_expected(wide[2])), strict=True
    ):
        assert ours.dtype == dtype
        reference = np.asarray(reference)
        error = np.abs(np.asarray(ours, np.float32) - reference).max()
        assert error <= tolerance * np.abs(reference).max()


def test_one_channel_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 1, 0, 0].set(1.0)  # the pixel above
    np.testing.assert_array_equal(
        ops.depthwise_conv(x, kernel)[0, :, :, 0], [[0, 0, 0], [0, 1, 2], [3, 4, 5]]
    )


def test_the_lowering_follows_the_platform_and_not_the_machine():
    x, k, _ = operands((1, 4, 4, 2))
    lowered = jax.jit(ops.depthwise_conv).trace(x, k)
    assert 'stablehlo.convolution' not in lowered.lower(lowering_platforms=('cpu',)).as_text()
    assert 'stablehlo.convolution' in lowered.lower(lowering_platforms=('tpu',)).as_text()
