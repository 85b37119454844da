"""Regular convolution."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.ops.lowering import by_device
from xception_flax.ops.places import every

# The weights' gradient is a product of patches from so many places of outputs on, up to so many
# channels of inputs: with more it is no quicker, and the patches fill the memory.
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

    XLA on CPU is slow in gradients by the kernel, and in convolutions of 1x1: there these are
    matrix products.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, C / groups, features]`.
      strides: distance of the outputs.
      padding: 'SAME', 'VALID', or pixels before and after, for height and width.
      lhs_dilation: distance of the pixels of `x`, with zeros between them.
      rhs_dilation: distance of the inputs that a kernel meets.
      **options: the others of `lax.conv_general_dilated`.

    Returns:
      `[N, H', W', features]`.
    """

    def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation, rhs_dilation, **options
        )

    dilated = any(d != 1 for d in (*lhs_dilation, *rhs_dilation))
    if dilated or options.get('feature_group_count', 1) != 1:
        return reference(x, kernel)
    sides = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], sides, strides, padding)
    top, left = map(tuple, padding)
    places = jax.eval_shape(reference, x, kernel).shape[1:3]
    if sides == (1, 1) and not any((*top, *left)):
        cpu = functools.partial(pointwise, strides=strides)
    elif math.prod(places) >= PATCHES_FROM and x.shape[-1] <= PATCHES_TO:
        cpu = functools.partial(patched, strides=tuple(strides), pads=(top, left))
    else:
        return reference(x, kernel)
    return by_device(x, kernel, cpu=cpu, reference=reference)


def pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
    """A convolution of 1x1 as a matrix product."""
    x = x[:, :: strides[0], :: strides[1]]
    product = matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return product.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` for a tall `x`, whose gradients do not share the work of what is before them."""
    return x @ kernel


def _matmul_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array):
    # Else XLA computes grad (of batch norm, say) element by element in the order in which the
    # transposed product reads it, across rows.
    x, kernel = saved
    x, grad = lax.optimization_barrier((x, grad))
    return grad @ kernel.T, x.T @ grad


matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def patched(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Any) -> jax.Array:
    """XLA's convolution, whose gradient by the kernel is a matrix product of patches."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _patched_forward(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Any):
    return patched(x, kernel, strides, pads), (x, kernel)


def _patched_backward(
    strides: Sequence[int], pads: Any, saved: tuple[jax.Array, jax.Array], grad: jax.Array
):
    x, kernel = saved
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=pads,
        dimension_numbers=NHWC,
    )
    (grad_x,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(grad)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = grad.shape[1:3]
    patches = [
        every(padded[:, i:, j:], strides, height, width)
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    flat = jnp.concatenate(patches, -1).reshape(-1, kernel[..., 0].size)
    grad_kernel = jnp.matmul(
        flat.T,
        grad.reshape(-1, grad.shape[-1]),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return grad_x, grad_kernel.reshape(kernel.shape).astype(kernel.dtype)


patched.defvjp(_patched_forward, _patched_backward)
