"""Depthwise convolution: one meaning, and a lowering for each kind of device."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel of `x` with a kernel of its own; stride 1, padding SAME.

    On CPU it is `shifted`, elsewhere `convolution`: the same values but for rounding.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, 1, C]`, with h and w odd.

    Returns:
      `[N, H, W, C]`.
    """
    return lax.platform_dependent(x, kernel, cpu=shifted, default=convolution)


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The reference: XLA's grouped convolution, which is quick on TPU."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A sum over the kernel's elements of shifted, weighted copies of `x`.

    XLA's grouped convolution on CPU leaves the vector units idle, above all in its gradient: a
    training step of a small Xception takes less than half the time with this one.
    """
    terms = [part * kernel[i, j, 0] for (i, j), part in _shifts(x, kernel.shape)]
    return functools.reduce(jnp.add, terms)


def _shifted_forward(x: jax.Array, kernel: jax.Array):
    return shifted(x, kernel), (x, kernel)


def _shifted_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array):
    x, kernel = saved
    wide = jnp.promote_types(x.dtype, jnp.float32)
    sums = [jnp.sum(part * grad, (0, 1, 2), dtype=wide) for _, part in _shifts(x, kernel.shape)]
    grad_kernel = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)
    return shifted(grad, kernel[::-1, ::-1]), grad_kernel


shifted.defvjp(_shifted_forward, _shifted_backward)


def _shifts(x: jax.Array, kernel_shape: tuple[int, ...]):
    """For each element (i, j) of the kernel: what of `x` it meets at each output position."""
    height, width = kernel_shape[:2]
    rows, columns = height // 2, width // 2
    padded = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    for i in range(height):
        for j in range(width):
            yield (i, j), padded[:, i : i + x.shape[1], j : j + x.shape[2]]
