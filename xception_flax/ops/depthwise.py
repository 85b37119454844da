"""Depthwise convolution."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.ops.lowering import as_batch, by_device, no_copies
from xception_flax.ops.slicing import strided


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, strides: int = 1, dilation: int = 1
) -> jax.Array:
    """Convolves each channel of `x` with its own kernel.

    Each side is padded by `dilation * (h // 2)` pixels, whatever the stride; at stride 1 this is
    SAME. `shifted` computes it on CPU, `convolution` elsewhere; they agree up to rounding.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, 1, C]`, with h and w odd.
      strides: stride in both directions.
      dilation: dilation of the kernel in both directions.

    Returns:
      `[N, H / strides, W / strides, C]`, rounded up.
    """
    return by_device(
        x,
        kernel,
        cpu=lambda x, kernel: shifted(x, kernel, strides, dilation),
        reference=lambda x, kernel: convolution(x, kernel, strides, dilation),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolution(x: jax.Array, kernel: jax.Array, strides: int = 1, dilation: int = 1) -> jax.Array:
    """The reference: XLA's grouped convolution, which is fast on TPU.

    Its kernel gradient is XLA's, too, where that is right on several devices, and elsewhere a plain
    sum of products, which on TPU takes the whole training step half as long again.
    """
    return _grouped(x, kernel, strides, dilation)


def _grouped(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(dilation * (side // 2),) * 2 for side in kernel.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


@convolution.defjvp
def _convolution_jvp(
    strides: int, dilation: int, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    tangent = convolution(x_tangent, kernel, strides, dilation)
    if no_copies():
        tangent += as_batch(_grouped(as_batch(x), kernel_tangent, strides, dilation))
    else:
        tangent += _wide_copies(x, kernel_tangent, strides, dilation)
    return convolution(x, kernel, strides, dilation), tangent


# With its own jit it is traced once for all layers of the same shapes.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _copies(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    """The sum of shifted copies of `x`, each weighted by one element of the kernel."""
    padded = _pad(x, kernel.shape, dilation)
    height, width = (-(-side // strides) for side in x.shape[1:3])
    return functools.reduce(
        jnp.add,
        (
            strided(padded[:, top:, left:], (strides, strides), height, width) * kernel[i, j, 0]
            for i, j, top, left in _offsets(kernel.shape, dilation)
        ),
    )


def _wide_copies(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    """`_copies`, with sums of float32 or wider, also in its transpose by the kernel."""
    wide = (a.astype(jnp.promote_types(x.dtype, jnp.float32)) for a in (x, kernel))
    return _copies(*wide, strides, dilation).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def shifted(x: jax.Array, kernel: jax.Array, strides: int = 1, dilation: int = 1) -> jax.Array:
    """The sum of shifted copies of `x`, each weighted by one element of the kernel.

    XLA's grouped convolution on CPU leaves the vector units idle, above all in its gradient. The
    derivative is written so that its transpose, the gradient, uses them, too.
    """
    return _copies(x, kernel, strides, dilation)


@shifted.defjvp
def _shifted_jvp(
    strides: int, dilation: int, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    tangent = _spread(x_tangent, kernel, strides, dilation)
    tangent += _kernel_tangent(x, kernel_tangent, strides, dilation)
    return shifted(x, kernel, strides, dilation), tangent


@functools.partial(jax.jit, static_argnums=(2, 3))
def _spread(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    """`_copies`, whose transpose by `x` is the sum of shifted copies of a gradient."""
    rows, columns = (dilation * (side - 1) for side in kernel.shape[:2])
    full = functools.reduce(
        jnp.add,
        (
            jnp.pad(
                x * kernel[i, j, 0],
                ((0, 0), (rows - top, top), (columns - left, left), (0, 0)),
            )
            for i, j, top, left in _offsets(kernel.shape, dilation)
        ),
    )
    height, width = (-(-side // strides) for side in x.shape[1:3])
    return strided(full[:, rows // 2 :, columns // 2 :], (strides, strides), height, width)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _by_rows(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    """`_copies`, whose transpose by the kernel sums over all positions row by row.

    XLA computes plain sums one number at a time. Here every column has its own sum until the end,
    so each step multiplies whole rows, which uses the vector units: five times as fast.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = lax.optimization_barrier(_pad(x, kernel.shape, dilation))  # once, not in each step
    height, width = (-(-side // strides) for side in x.shape[1:3])
    reach = dilation * (kernel.shape[0] - 1) + 1
    shape = (len(x), 1, width, x.shape[-1])
    factors = [
        jnp.broadcast_to(kernel[i, j, 0].astype(wide), shape)
        for i, j, _, _ in _offsets(kernel.shape, dilation)
    ]

    # The gradient cuts its windows again; it would keep nine of them for each row.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def row(_: None, number: jax.Array) -> tuple[None, jax.Array]:
        window = lax.dynamic_slice_in_dim(padded, number * strides, reach, 1)
        products = (
            strided(window[:, top : top + 1, left:], (strides, strides), 1, width) * factor
            for factor, (_, _, top, left) in zip(
                factors, _offsets(kernel.shape, dilation), strict=True
            )
        )
        return None, functools.reduce(jnp.add, products)[:, 0]

    # Two rows per step are faster for long sums, but take longer to compile.
    _, rows = lax.scan(row, None, jnp.arange(height), unroll=2 if height > 32 else 1)
    return jnp.moveaxis(rows, 0, 1).astype(x.dtype)


# JAX before 0.10 cannot transpose a loop that is linear from the start.
_kernel_tangent = _by_rows if jax.__version_info__ >= (0, 10) else _wide_copies


def _pad(x: jax.Array, kernel_shape: tuple[int, ...], dilation: int) -> jax.Array:
    rows, columns = (dilation * (side // 2) for side in kernel_shape[:2])
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _offsets(kernel_shape: tuple[int, ...], dilation: int) -> Iterator[tuple[int, int, int, int]]:
    """Each element (i, j) of the kernel, with the offset of its first input in the padded `x`."""
    for i in range(kernel_shape[0]):
        for j in range(kernel_shape[1]):
            yield i, j, dilation * i, dilation * j
