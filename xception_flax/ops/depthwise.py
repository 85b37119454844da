"""Depthwise convolution."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.ops.lowering import by_device
from xception_flax.ops.places import every


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, strides: int = 1, dilation: int = 1
) -> jax.Array:
    """Convolves each channel of `x` with a kernel of its own.

    On either side are `dilation * (h // 2)` pixels of padding, whatever the stride; at stride 1
    this is SAME. On CPU it is `shifted`, elsewhere `convolution`: the same values but for rounding.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, 1, C]`, with h and w odd.
      strides: distance of the outputs, in both directions.
      dilation: distance of the inputs that a kernel meets, in both directions.

    Returns:
      `[N, H / strides, W / strides, C]`, rounded up.
    """
    return by_device(
        x,
        kernel,
        cpu=lambda x, kernel: shifted(x, kernel, strides, dilation),
        reference=lambda x, kernel: convolution(x, kernel, strides, dilation),
    )


def convolution(x: jax.Array, kernel: jax.Array, strides: int = 1, dilation: int = 1) -> jax.Array:
    """The reference: XLA's grouped convolution, which is quick on TPU."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(dilation * (side // 2),) * 2 for side in kernel.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


# Jitted by itself, it is traced once for all layers of a shape.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3))
def shifted(x: jax.Array, kernel: jax.Array, strides: int = 1, dilation: int = 1) -> jax.Array:
    """A sum over the kernel's elements of shifted, weighted copies of `x`.

    XLA's grouped convolution on CPU leaves the vector units idle, above all in its gradient.
    """
    padded = _pad(x, kernel.shape, dilation)
    height, width = (-(-side // strides) for side in x.shape[1:3])
    return functools.reduce(
        jnp.add,
        (
            every(padded[:, top:, left:], (strides, strides), height, width) * kernel[i, j, 0]
            for i, j, top, left in _offsets(kernel.shape, dilation)
        ),
    )


def _shifted_forward(x: jax.Array, kernel: jax.Array, strides: int, dilation: int):
    return shifted(x, kernel, strides, dilation), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _shifted_backward(
    strides: int, dilation: int, saved: tuple[jax.Array, jax.Array], grad: jax.Array
):
    x, kernel = saved
    # Zeros between the outputs, so that the gradient is as large as the input.
    rest = [(n - 1) % strides for n in x.shape[1:3]]
    spread = lax.pad(
        grad,
        jnp.zeros((), grad.dtype),
        [(0, 0, 0), *((0, n, strides - 1) for n in rest), (0, 0, 0)],
    )
    grad_x = shifted(spread, kernel[::-1, ::-1], 1, dilation)
    return grad_x, _kernel_gradient(x, kernel, grad, strides, dilation)


shifted.defvjp(_shifted_forward, _shifted_backward)


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, grad: jax.Array, strides: int, dilation: int
) -> jax.Array:
    """The gradient by the kernel: sums of products over all places, one row after the other.

    As plain sums XLA computes them one number at a time. Here the sums of a row's places stay
    apart until the end, so that each step is a product of whole rows, of which vector units do
    several at once: five times as quick.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    offsets = list(_offsets(kernel.shape, dilation))
    padded = lax.optimization_barrier(_pad(x, kernel.shape, dilation))  # once, not in each step
    n, height, width, channels = grad.shape
    reach = dilation * (kernel.shape[0] - 1) + 1

    def add_row(sums: list[jax.Array], row: jax.Array):
        window = lax.dynamic_slice_in_dim(padded, row * strides, reach, 1)
        grads = lax.dynamic_slice_in_dim(grad, row, 1, 1)
        products = (
            every(window[:, top : top + 1, left:], (strides, strides), 1, width).astype(wide)
            * grads
            for _, _, top, left in offsets
        )
        return [total + product for total, product in zip(sums, products, strict=True)], None

    zeros = [jnp.zeros((n, 1, width, channels), wide) for _ in offsets]
    # Two rows at a time are quicker where the sums are long, but take longer to compile.
    unroll = 2 if height > 32 else 1
    sums, _ = lax.scan(add_row, zeros, jnp.arange(height), unroll=unroll)
    return jnp.sum(jnp.stack(sums), (1, 2, 3)).reshape(kernel.shape).astype(kernel.dtype)


def _pad(x: jax.Array, kernel_shape: tuple[int, ...], dilation: int) -> jax.Array:
    rows, columns = (dilation * (side // 2) for side in kernel_shape[:2])
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _offsets(kernel_shape: tuple[int, ...], dilation: int):
    """For each element (i, j) of the kernel: where in the padded input its first place is."""
    for i in range(kernel_shape[0]):
        for j in range(kernel_shape[1]):
            yield i, j, dilation * i, dilation * j
