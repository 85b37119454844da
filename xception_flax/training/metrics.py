"""Accuracy from logits, one value a picture; and MAP@100, of pictures of several classes.

The paper measures networks for JFT by MAP@100 on FastEval14k, each class weighted by how common it
is on social media (section 4.1). That has two readings: `average_precision` goes through the
classes of a picture, `PooledRankings` through the pictures of a class. Both are between 0 and 1.
Neither the pictures nor the weights are public, nor is the scale of the paper's 6.70 known: no
value is comparable to its own.
"""

import jax
import jax.numpy as jnp
import numpy as np

DEPTH = 100  # classes of a picture that are looked at


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


# What a network says of a batch of pictures of several classes: 'classes', 'scores' and 'hits'
# `[N, K]`, best first, and 'positives' `[C]`, the number of pictures of each class.
Ranking = dict[str, jax.Array]


def rank(scores: jax.Array, labels: jax.Array, counted: jax.Array, depth: int = DEPTH) -> Ranking:
    """The best classes of each picture, and whether they are right.

    Args:
      scores: `[N, C]`, comparable between pictures.
      labels: `[N, C]` of 0 and 1.
      counted: `[N]`, whether a picture counts; the classes of the others are -1.
      depth: how many classes to take, of all if there are fewer.
    """
    # Neither a score that is no number nor its class counts for anything.
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores).astype(jnp.float32)
    best, classes = jax.lax.top_k(scores, min(depth, scores.shape[1]))
    hits = (jnp.take_along_axis(labels, classes, 1) > 0) & (best > -jnp.inf) & counted[:, None]
    return {
        'classes': jnp.where(counted[:, None], classes, -1),
        'scores': best,
        'hits': hits,
        'positives': jnp.sum((labels > 0) & counted[:, None], 0),
    }


def average_precision(ranking: Ranking, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """AP@K of each picture with its hits weighted by class: the first reading of MAP@100.

    With `hit(r)` whether the class `c(r)` at rank r is one of the picture's, and `precision(r)` the
    share of hits among the first r,

        AP@K = sum over r <= K of w(c(r)) hit(r) precision(r) / W

    where W is the sum of the picture's own K largest class weights, so that the best order gives 1.
    With equal weights it is the AP@K of information retrieval, over min(K, number of classes).

    Args:
      ranking: of `rank`.
      labels: `[N, C]` of 0 and 1.
      weights: `[C]`, at least 0.

    Returns:
      `[N]` float32; NaN for a picture whose classes all weigh nothing.
    """
    hits = ranking['hits'].astype(jnp.float32)
    depth = hits.shape[1]
    # By keyword: jax2onnx, once imported, leaves a `cumsum` that takes nothing else.
    precision = jnp.cumsum(hits, axis=1) / jnp.arange(1, depth + 1)
    gained = jnp.sum(weights[ranking['classes']] * hits * precision, 1)
    possible = jax.lax.top_k(jnp.where(labels > 0, weights, 0.0), depth)[0].sum(1)
    return (gained / possible).astype(jnp.float32)


class PooledRankings:
    """The best classes of all pictures, pooled by class: the second reading of MAP@100.

    It keeps K numbers a picture, whatever the number of classes.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []
        self._positives: np.ndarray | int = 0

    def add(self, ranking: Ranking) -> None:
        """Takes a batch, of all hosts."""
        host = jax.device_get(ranking)
        self._positives = self._positives + host['positives'].astype(np.int64)
        counted = host['classes'] >= 0
        self._batches.append({k: host[k][counted] for k in ('classes', 'scores', 'hits')})

    def mean_average_precision(self, weights: np.ndarray) -> float:
        """The mean over classes, weighted by class, of the AP of each.

        The pictures that have a class among their K best are ranked by its score. Its AP is the sum
        of the precision at each hit, over the number of all pictures of the class: those that have
        it not among their K best are never found. Pictures of equal score share the precision
        after the last of them, as in scikit-learn, so that no order of pictures counts. Classes of
        which there is no picture are left out; 0 if no other weighs anything.

        Args:
          weights: `[C]`, at least 0.
        """
        if not self._batches:
            return 0.0
        pooled = {k: np.concatenate([b[k] for b in self._batches]) for k in self._batches[0]}
        order = np.lexsort((-pooled['scores'], pooled['classes']))
        classes, scores, hits = (pooled[k][order] for k in ('classes', 'scores', 'hits'))
        positives = np.asarray(self._positives)
        found = np.concatenate([[0], np.cumsum(hits)])  # in the first n
        starts = np.searchsorted(classes, classes)  # of each one's class
        last = np.ones(len(classes), bool)  # of equal scores
        last[:-1] = (classes[1:] != classes[:-1]) | (scores[1:] != scores[:-1])
        ends = np.flatnonzero(last)[np.cumsum(last) - last] + 1
        precision = (found[ends] - found[starts]) / (ends - starts)
        gained = np.bincount(classes[hits], precision[hits], len(positives))
        share = np.where(positives > 0, weights, 0.0).astype(np.float64)
        total = share.sum()
        return float((share * gained / np.maximum(positives, 1)).sum() / total) if total else 0.0
