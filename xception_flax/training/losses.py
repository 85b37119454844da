"""Losses, one value per image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def softmax(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of the softmax of `logits` `[N, C]` against `targets` `[N, C]`, to `[N]`."""
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross entropy, summed over classes: `[N, C]`, `[N, C]` to `[N]`."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    'softmax': softmax,
    'sigmoid': sigmoid,
}


def as_targets(labels: jax.Array, num_classes: int, loss: str) -> jax.Array:
    """Labels `[N]`, or `[N, C]` of 0 and 1, as targets `[N, C]` float32.

    For softmax, whose probabilities sum to 1, the labels of an image share them equally.
    """
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    targets = labels.astype(jnp.float32)
    if loss == 'softmax':
        targets /= jnp.maximum(targets.sum(1, keepdims=True), 1)
    return targets


def mean_of_softmax(logits: jax.Array) -> jax.Array:
    """Logits of the mean of the probabilities of `logits` `[K, N, C]`: `[N, C]`."""
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), 0) - jnp.log(len(logits))


def mean_of_sigmoid(logits: jax.Array) -> jax.Array:
    """Like `mean_of_softmax`, for each class separately."""
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), 0) for x in (logits, -logits))
    return yes - no


MEANS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'softmax': mean_of_softmax,
    'sigmoid': mean_of_sigmoid,
}


def smooth(targets: jax.Array, amount: float, loss: str) -> jax.Array:
    """Label smoothing of `targets` `[N, C]`.

    For softmax, `amount` of the probability is spread evenly over the classes (Inception V3 paper,
    section 7); for sigmoid, each target moves towards 1/2 by it.
    """
    prior = 1 / targets.shape[-1] if loss == 'softmax' else 0.5
    return targets * (1 - amount) + amount * prior
