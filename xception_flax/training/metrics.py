"""Accuracy from logits, one value a picture."""

import jax
import jax.numpy as jnp


def in_top(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the true class, or one of several, is among the `k` largest logits.

    Of equal logits the one with the lower index counts as the larger, as in `argmax`; a logit that
    is not a number counts as wrong.

    Args:
      logits: `[N, C]`.
      labels: `[N]` int32, or `[N, C]` of 0 and 1 (of no class at all: wrong).
      k: how many to look at.

    Returns:
      `[N]` float32 of 0 and 1.
    """
    known = jnp.ones(len(logits), bool)
    if labels.ndim == 2:
        known = (labels > 0).any(1)
        # The largest logit of a true class stands for all of them.
        labels = jnp.argmax(jnp.where(labels > 0, logits, -jnp.inf), 1)
    true = jnp.take_along_axis(logits, labels[:, None], 1)
    before = jnp.arange(logits.shape[1]) < labels[:, None]
    ahead = ~(logits <= true) | ((logits == true) & before)
    return ((ahead.sum(1) < k) & jnp.isfinite(true[:, 0]) & known).astype(jnp.float32)
