"""Separable convolution: depthwise, then pointwise, with nothing between them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.ops.convolution import NHWC, conv
from xception_flax.ops.depthwise import depthwise_conv
from xception_flax.ops.lowering import by_device

# Up to this number of input channels TPUs run both as one regular convolution: nine times the work
# of the pointwise one, but on a matrix unit that would otherwise wait for memory.
FOLD_TO = 128


def separable_conv(
    x: jax.Array,
    depthwise: jax.Array,
    pointwise: jax.Array,
    strides: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """Convolves each channel of `x` by itself, as `depthwise_conv` does, then mixes the channels.

    Args:
      x: `[N, H, W, C]`.
      depthwise: `[h, w, 1, C]`, with h and w odd.
      pointwise: `[1, 1, C, features]`.
      strides: stride in both directions.
      dilation: dilation of the depthwise kernel in both directions.

    Returns:
      `[N, H / strides, W / strides, features]`, rounded up.
    """

    def separate(x: jax.Array, depthwise: jax.Array, pointwise: jax.Array) -> jax.Array:
        y = depthwise_conv(x, depthwise, strides, dilation)
        return conv(y, pointwise, (1, 1), 'VALID', dimension_numbers=NHWC)

    if x.shape[-1] > FOLD_TO:
        return separate(x, depthwise, pointwise)
    return by_device(
        x,
        depthwise,
        pointwise,
        tpu=functools.partial(folded, strides=strides, dilation=dilation),
        reference=separate,
    )


def folded(
    x: jax.Array, depthwise: jax.Array, pointwise: jax.Array, strides: int = 1, dilation: int = 1
) -> jax.Array:
    """One regular convolution with the product of the two kernels."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    kernel = jnp.swapaxes(depthwise, 2, 3).astype(wide) * pointwise.astype(wide)
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(strides, strides),
        padding=[(dilation * (side // 2),) * 2 for side in depthwise.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
    )
