"""Strided slices, of which the implementations for CPU are made."""

from collections.abc import Sequence

import jax


def strided(x: jax.Array, strides: Sequence[int], height: int, width: int) -> jax.Array:
    """`height` rows and `width` columns of `x` from the first, at distances `strides`."""
    rows, columns = ((n - 1) * s + 1 for n, s in zip((height, width), strides, strict=True))
    return x[:, : rows : strides[0], : columns : strides[1]]
