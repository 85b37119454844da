"""Regular convolution."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.ops.lowering import by_device
from xception_flax.ops.slicing import strided

# The kernel gradient is a product of patches from this number of output positions, and up to this
# number of input channels: with more channels it is no faster, and the patches fill the memory.
PATCHES_FROM, PATCHES_TO = 10_000, 32

NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    **options: Any,
) -> jax.Array:
    """Convolves, with the arguments of `lax.conv_general_dilated`; for `nn.Conv`.

    XLA on CPU is slow in kernel gradients and 1x1 convolutions; on CPU these are matrix products.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, C / groups, features]`.
      strides: strides for height and width.
      padding: 'SAME', 'VALID', or pixels before and after, for height and width.
      lhs_dilation: dilation of `x`, with zeros between its pixels.
      rhs_dilation: dilation of the kernel.
      **options: other arguments of `lax.conv_general_dilated`.

    Returns:
      `[N, H', W', features]`.
    """

    def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation, rhs_dilation, **options
        )

    groups = options.pop('feature_group_count', 1)
    if groups > 1:  # each by itself: see `depthwise.convolution` for XLA's gradient of them
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate(
            [
                conv(x, kernel, strides, padding, lhs_dilation, rhs_dilation, **options)
                for x, kernel in parts
            ],
            -1,
        )
    if any(d != 1 for d in (*lhs_dilation, *rhs_dilation)):
        return reference(x, kernel)
    sides = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], sides, strides, padding)
    top, left = map(tuple, padding)
    positions = jax.eval_shape(reference, x, kernel).shape[1:3]
    if sides == (1, 1) and not any((*top, *left)):
        cpu = functools.partial(pointwise, strides=strides)
    elif math.prod(positions) >= PATCHES_FROM and x.shape[-1] <= PATCHES_TO:
        cpu = functools.partial(patched, strides=tuple(strides), pads=(top, left))
    else:
        return reference(x, kernel)
    return by_device(x, kernel, cpu=cpu, reference=reference)


def pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
    """A 1x1 convolution as a matrix product."""
    x = x[:, :: strides[0], :: strides[1]]
    product = matmul(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), kernel[0, 0])
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_jvp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` for a tall `x`; XLA does not fuse its gradients with what precedes them."""
    return x @ kernel


@matmul.defjvp
def _matmul_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # If fused, the gradient (from batch norm, say) is computed element by element in the order in
    # which the transposed product reads it, across rows.
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    by_kernel = lax.optimization_barrier(x) @ kernel_tangent
    return x @ kernel, lax.optimization_barrier(x_tangent @ kernel + by_kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def patched(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Any) -> jax.Array:
    """XLA's convolution, whose kernel gradient is a matrix product of patches."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


@patched.defjvp
def _patched_jvp(
    strides: Sequence[int], pads: Any, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    y = patched(x, kernel, strides, pads)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = y.shape[1:3]
    patches = [
        strided(padded[:, i:, j:], strides, height, width)
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    flat = jnp.concatenate(patches, -1).reshape(math.prod(y.shape[:3]), kernel[..., 0].size)
    by_kernel = jnp.matmul(
        flat,
        kernel_tangent.reshape(flat.shape[1], -1),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return y, patched(x_tangent, kernel, strides, pads) + by_kernel.reshape(y.shape).astype(y.dtype)
