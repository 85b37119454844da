"""Separable convolution: depthwise, then pointwise, with nothing between them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.ops.convolution import NHWC, conv
from xception_flax.ops.depthwise import depthwise_conv
from xception_flax.ops.lowering import by_device

# Up to so many channels of inputs, TPU does the two as one regular convolution. That is nine times
# the work of the pointwise one, but for a matrix unit that else waits for memory.
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
      strides: distance of the outputs, in both directions.
      dilation: distance of the inputs that the depthwise kernel meets, in both directions.

    Returns:
      `[N, H / strides, W / strides, features]`, rounded up.
    """

    def apart(x: jax.Array, depthwise: jax.Array, pointwise: jax.Array) -> jax.Array:
        y = depthwise_conv(x, depthwise, strides, dilation)
        return conv(y, pointwise, (1, 1), 'VALID', dimension_numbers=NHWC)

    if x.shape[-1] > FOLD_TO:
        return apart(x, depthwise, pointwise)
    return by_device(
        x,
        depthwise,
        pointwise,
        tpu=functools.partial(folded, strides=strides, dilation=dilation),
        reference=apart,
    )


def folded(
    x: jax.Array, depthwise: jax.Array, pointwise: jax.Array, strides: int = 1, dilation: int = 1
) -> jax.Array:
    """One regular convolution by the product of the two kernels."""
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
