"""Separable convolution: its implementations agree, and each backend gets its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops
from xception_flax.ops import separable
from xception_flax.ops.convolution import NHWC


def operands(shape, features, kernel=3, strides=1):
    """Images, the two kernels, and a gradient of the output."""
    rng = np.random.default_rng(0)
    n, height, width, channels = shape
    output = (n, -(-height // strides), -(-width // strides), features)
    shapes = (shape, (kernel, kernel, 1, channels), (1, 1, channels, features), output)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def value_and_gradients(op, strides, dilation, x, depthwise, pointwise, grad):
    value, pull = jax.vjp(lambda *a: op(*a, strides, dilation), x, depthwise, pointwise)
    return value, *pull(grad)


@pytest.mark.parametrize(
    ('shape', 'features', 'kernel', 'strides', 'dilation'),
    [
        ((2, 8, 8, 5), 7, 3, 1, 1),
        ((3, 7, 10, 4), 4, 5, 2, 1),
        ((2, 8, 8, 5), 1, 3, 1, 2),
        ((3, 7, 10, 4), 6, 3, 2, 2),
        ((1, 1, 1, 1), 3, 3, 1, 1),
    ],
)
# bfloat16 has 8 bits: one form rounds the depthwise output, the other the product of the kernels.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_one_convolution_equals_two_in_value_and_gradient(
    shape, features, kernel, strides, dilation, dtype, tolerance
):
    arrays = operands(shape, features, kernel, strides)
    with ops.lowerings('reference'):
        expected = value_and_gradients(ops.separable_conv, strides, dilation, *arrays)
    narrow = [a.astype(dtype) for a in arrays]
    found = value_and_gradients(separable.folded, strides, dilation, *narrow)
    for ours, array in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float32) - array).max()
        assert error <= tolerance * np.abs(array).max()


def test_it_is_depthwise_then_pointwise_convolution():
    x, depthwise, pointwise, _ = operands((2, 8, 8, 5), 7)
    between = ops.depthwise_conv(x, depthwise)
    expected = jax.lax.conv_general_dilated(
        between, pointwise, (1, 1), 'VALID', dimension_numbers=NHWC
    )
    np.testing.assert_allclose(
        ops.separable_conv(x, depthwise, pointwise), expected, rtol=0, atol=2e-6 * 5
    )


@pytest.mark.parametrize(
    ('channels', 'platform', 'choice', 'convolutions'),
    [
        (separable.FOLD_TO, 'tpu', 'auto', 1),
        (separable.FOLD_TO + 1, 'tpu', 'auto', 2),
        (separable.FOLD_TO, 'tpu', 'reference', 2),
        (separable.FOLD_TO, 'cuda', 'auto', 2),
        (separable.FOLD_TO, 'cpu', 'auto', 0),
    ],
)
def test_the_implementation_depends_on_channels_backend_and_choice(
    channels, platform, choice, convolutions
):
    x, depthwise, pointwise, _ = operands((1, 4, 4, channels), 2)
    with ops.lowerings(choice):
        traced = jax.jit(lambda *a: ops.separable_conv(*a)).trace(x, depthwise, pointwise)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.convolution') == convolutions


@pytest.mark.parametrize('platform', ['cpu', 'tpu', 'gpu'])
def test_for_a_known_backend_only_its_implementation_is_traced(platform):
    arrays = operands((1, 8, 8, 64), 7)[:3]

    def convolve(*arrays):
        with ops.lowerings('auto', platform):
            return ops.separable_conv(*arrays)

    jaxpr = str(jax.make_jaxpr(convolve)(*arrays))
    assert 'platform_index' not in jaxpr
    assert ('f32[3,3,64,7]' in jaxpr) == (platform == 'tpu')  # the product of the kernels
