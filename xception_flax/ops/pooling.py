"""Max pooling."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xception_flax.ops.lowering import by_device
from xception_flax.ops.places import every

Pads = tuple[tuple[int, int], tuple[int, int]]


def max_pool(x: jax.Array, window: int, strides: int, padding: str | Pads) -> jax.Array:
    """The largest of each window; of equal ones the first gets the gradient.

    Args:
      x: `[N, H, W, C]`.
      window: side of the windows.
      strides: distance of the windows.
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
    """The reference: a border of -inf, then pooling without any; jax2onnx knows this form."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(window, window), strides=(strides, strides))


def windowed(x: jax.Array, window: int, strides: int, padding: Pads) -> jax.Array:
    """XLA's windowed reduction with its own padding, which no one has to write to memory."""
    sizes = (1, window, window, 1), (1, strides, strides, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *sizes, ((0, 0), *padding, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def chosen(x: jax.Array, window: int, strides: int, padding: Pads) -> jax.Array:
    """The same, remembering for the gradient which place of a window is the largest.

    XLA's gradient on CPU looks for it again, one window at a time.
    """
    return functools.reduce(jnp.maximum, _parts(x, window, strides, padding))


def _parts(x: jax.Array, window: int, strides: int, padding: Pads) -> list[jax.Array]:
    """The first place of all windows, the second, and so on."""
    framed = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    height, width = ((side - window) // strides + 1 for side in framed.shape[1:3])
    return [
        every(framed[:, i:, j:], (strides, strides), height, width)
        for i, j in itertools.product(range(window), repeat=2)
    ]


def _chosen_forward(x: jax.Array, window: int, strides: int, padding: Pads):
    best, *others = _parts(x, window, strides, padding)
    kind = jnp.int8 if window**2 < 2**7 else jnp.int32  # places of a window, and -1
    choice = jnp.zeros(best.shape, kind)
    for number, part in enumerate(others, start=1):
        choice = jnp.where(part > best, number, choice)
        best = jnp.maximum(best, part)
    return best, (choice, x)


def _chosen_backward(window: int, strides: int, padding: Pads, saved, grad: jax.Array):
    # Row r of the padded input, r = strides * cell + row, is row (row + strides * u) of the windows
    # at cell - u, for each u that gives one of the window's rows; so with columns.
    choice, x = saved
    sides = [side + sum(pad) for side, pad in zip(x.shape[1:3], padding, strict=True)]
    cells = [-(-side // strides) for side in sides]
    reach = -(-window // strides) - 1
    pads = [(reach, c - n) for c, n in zip(cells, grad.shape[1:3], strict=True)]
    grad, choice = (jnp.pad(a, ((0, 0), *pads, (0, 0))) for a in (grad, choice))
    row = np.arange(strides).reshape(1, 1, strides, 1, 1, 1)
    column = np.arange(strides).reshape(1, 1, 1, 1, strides, 1)
    total = jnp.zeros((), grad.dtype)
    for u, v in itertools.product(range(reach + 1), repeat=2):
        i, j = row + strides * u, column + strides * v
        place = np.where((i < window) & (j < window), i * window + j, -1)
        rows, columns = (
            slice(reach - w, reach - w + c) for w, c in zip((u, v), cells, strict=True)
        )
        here = np.s_[:, rows, None, columns, None]
        total += jnp.where(choice[here] == place, grad[here], 0)
    whole = total.reshape(x.shape[0], cells[0] * strides, cells[1] * strides, x.shape[-1])
    (top, _), (left, _) = padding
    return (whole[:, top : top + x.shape[1], left : left + x.shape[2]],)


chosen.defvjp(_chosen_forward, _chosen_backward)
