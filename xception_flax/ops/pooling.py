"""Max pooling."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xception_flax.ops.lowering import by_device
from xception_flax.ops.slicing import strided

Pads = tuple[tuple[int, int], tuple[int, int]]


def max_pool(x: jax.Array, window: int, strides: int, padding: str | Pads) -> jax.Array:
    """The maximum of each window; among equal values the first gets the gradient.

    Args:
      x: `[N, H, W, C]`.
      window: side of the windows.
      strides: stride of the windows.
      padding: 'SAME', 'VALID', or pixels before and after, for height and width.

    Returns:
      `[N, H', W', C]`.
    """
    if isinstance(padding, str):
        sizes = (window, window), (strides, strides)
        (top, left) = jax.lax.padtype_to_pads(x.shape[1:3], *sizes, padding)
        padding = top, left
    return by_device(
        x,
        reference=lambda x: padded(x, window, strides, padding),
        cpu=lambda x: chosen(x, window, strides, padding),
        tpu=lambda x: windowed(x, window, strides, padding),
    )


def padded(x: jax.Array, window: int, strides: int, padding: Pads) -> jax.Array:
    """The reference: pads with -inf, then pools without padding; jax2onnx knows this form."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(window, window), strides=(strides, strides))


def windowed(x: jax.Array, window: int, strides: int, padding: Pads) -> jax.Array:
    """XLA's windowed reduction with its own padding, which is not written to memory."""
    sizes = (1, window, window, 1), (1, strides, strides, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *sizes, ((0, 0), *padding, (0, 0)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def chosen(x: jax.Array, window: int, strides: int, padding: Pads) -> jax.Array:
    """The same, keeping the position of each maximum for the gradient.

    XLA's gradient on CPU searches for it again, one window at a time.
    """
    return functools.reduce(jnp.maximum, _parts(x, window, strides, padding))


def _parts(x: jax.Array, window: int, strides: int, padding: Pads) -> list[jax.Array]:
    """The first element of all windows, the second, and so on."""
    framed = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    height, width = ((side - window) // strides + 1 for side in framed.shape[1:3])
    return [
        strided(framed[:, i:, j:], (strides, strides), height, width)
        for i, j in itertools.product(range(window), repeat=2)
    ]


@chosen.defjvp
def _chosen_jvp(
    window: int, strides: int, padding: Pads, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    best, *others = _parts(x, window, strides, padding)
    kind = jnp.int8 if window**2 < 2**7 else jnp.int32  # positions in a window, and -1
    choice = jnp.zeros(best.shape, kind)
    for number, part in enumerate(others, start=1):
        choice = jnp.where(part > best, number, choice)
        best = jnp.maximum(best, part)
    return best, _pick(tangent, choice, window, strides, padding)


def _pick(x: jax.Array, choice: jax.Array, window: int, strides: int, padding: Pads) -> jax.Array:
    """The value at the chosen position of each window; the transpose needs no search.

    Row (strides * cell + row) of the padded `x` is row (row + strides * u) of the window at
    cell - u, for every u for which the window has such a row. Likewise for columns.
    """
    sides = [side + sum(pad) for side, pad in zip(x.shape[1:3], padding, strict=True)]
    cells = [-(-side // strides) for side in sides]
    reach = -(-window // strides) - 1
    (top, _), (left, _) = padding
    ends = [c * strides - n for c, n in zip(cells, x.shape[1:3], strict=True)]
    framed = jnp.pad(x, ((0, 0), (top, ends[0] - top), (left, ends[1] - left), (0, 0)))
    framed = framed.reshape(len(x), cells[0], strides, cells[1], strides, x.shape[-1])
    height, width = choice.shape[1:3]
    pads = [(reach, c - n) for c, n in zip(cells, (height, width), strict=True)]
    choice = jnp.pad(choice, ((0, 0), *pads, (0, 0)))
    row = np.arange(strides).reshape(1, 1, strides, 1, 1, 1)
    column = np.arange(strides).reshape(1, 1, 1, 1, strides, 1)
    total = jnp.zeros((), x.dtype)
    for u, v in itertools.product(range(reach + 1), repeat=2):
        i, j = row + strides * u, column + strides * v
        position = np.where((i < window) & (j < window), i * window + j, -1)
        rows, columns = (
            slice(reach - w, reach - w + c) for w, c in zip((u, v), cells, strict=True)
        )
        here = choice[:, rows, None, columns, None]
        picked = jnp.where(here == position, framed, 0).sum((2, 4), dtype=x.dtype)
        total += jnp.pad(picked, ((0, 0), (reach - u, u), (reach - v, v), (0, 0)))
    return total[:, reach : reach + height, reach : reach + width]
