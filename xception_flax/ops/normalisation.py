"""The arithmetic of batch norm."""

import jax


def normalise(x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array) -> jax.Array:
    """`(x - mean) * multiplier + bias`, whose gradient has two sums over all positions.

    JAX would compute a third one, for the mean. It follows from the one for the bias if the mean
    that is subtracted is a constant `c`, and its derivative comes by a second way:

        (x - mean) * multiplier + bias = (x - c) * multiplier + (bias - (mean - c) * multiplier)

    holds for every `c`, here the value of the mean, so all derivatives of all orders are right.

    Args:
      x: `[N, ..., C]`.
      mean: `[N, 1, ..., 1, C]`, `[1, 1, ..., 1, C]` or `[C]`.
      multiplier: factor, in a shape of the same kind.
      bias: `[C]`.

    Returns:
      `[N, ..., C]`, in the widest of the types.
    """
    constant = jax.lax.stop_gradient(mean)
    return (x - constant) * multiplier + (bias - (mean - constant) * multiplier)
