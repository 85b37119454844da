"""The arithmetic of batch norm."""

import jax
import jax.numpy as jnp

from xception_flax.ops.lowering import reference_only


def normalise(x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array) -> jax.Array:
    """`(x - mean) * multiplier + bias`, whose gradient takes two sums, on all devices.

    Left to itself, JAX takes a third for the gradient by the mean.

    Args:
      x: `[G, ..., C]`.
      mean: `[G, 1, ..., 1, C]` or `[C]`.
      multiplier: of the mean's shape.
      bias: `[C]`.

    Returns:
      `[G, ..., C]`, of the widest of the types.
    """
    return (plain if reference_only() else with_two_sums)(x, mean, multiplier, bias)


def plain(x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array) -> jax.Array:
    """The reference."""
    return (x - mean) * multiplier + bias


with_two_sums = jax.custom_vjp(plain)


def _forward(x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array):
    return plain(x, mean, multiplier, bias), (x, mean, multiplier)


def _backward(saved: tuple[jax.Array, jax.Array, jax.Array], grad: jax.Array):
    x, mean, multiplier = saved
    axes = tuple(range(1, grad.ndim - 1))
    total = jnp.sum(grad, axes, keepdims=True)
    by_multiplier = jnp.sum(grad * (x - mean), axes, keepdims=True)
    by_bias = jnp.sum(total, tuple(range(grad.ndim - 1)))
    if mean.ndim == 1:
        total, by_multiplier = by_bias, jnp.sum(by_multiplier, tuple(range(grad.ndim - 1)))
    return (grad * multiplier).astype(x.dtype), -multiplier * total, by_multiplier, by_bias


with_two_sums.defvjp(_forward, _backward)
