"""What windows meet at their places."""

from collections.abc import Sequence

import jax


def every(x: jax.Array, strides: Sequence[int], height: int, width: int) -> jax.Array:
    """Every so many rows and columns of `x` from the first, `height` by `width` of them."""
    rows, columns = ((n - 1) * s + 1 for n, s in zip((height, width), strides, strict=True))
    return x[:, : rows : strides[0], : columns : strides[1]]
