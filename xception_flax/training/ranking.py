"""MAP@100 of multi-label images, in both readings of the paper.

The paper measures networks for JFT by MAP@100 on FastEval14k, each class weighted by how common it
is on social media (section 4.1). `average_precision` ranks the classes of an image, and
`mean_average_precision` the images of a class. Both are between 0 and 1. FastEval14k and its class
weights are not public, nor is the scale of the paper's 6.70: no value is comparable to it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DEPTH = 100  # classes per image that count

# The best classes of a batch of images, best first: 'classes', 'scores' and 'hits' `[N, K]`; and
# 'positives' `[1, C]`, the number of images of each class.
Ranking = dict[str, jax.Array]


def rank(scores: jax.Array, labels: jax.Array, counted: jax.Array, depth: int = DEPTH) -> Ranking:
    """The best classes of each image, and whether they are right.

    Args:
      scores: `[N, C]`, comparable between images; NaN scores rank last and are never hits.
      labels: `[N, C]` of 0 and 1.
      counted: `[N]`, whether an image counts; the classes of the others are -1.
      depth: number of classes per image; all if there are fewer.
    """
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores).astype(jnp.float32)
    best, classes = jax.lax.top_k(scores, min(depth, scores.shape[1]))
    hits = (jnp.take_along_axis(labels, classes, 1) > 0) & (best > -jnp.inf) & counted[:, None]
    return {
        'classes': jnp.where(counted[:, None], classes, -1),
        'scores': best,
        'hits': hits,
        'positives': jnp.sum((labels > 0) & counted[:, None], 0, keepdims=True),
    }


def average_precision(ranking: Ranking, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """AP@K of each image with its hits weighted by class: the first reading of MAP@100.

    With `hit(r)` whether the class `c(r)` at rank r is one of the image's, and `precision(r)` the
    fraction of hits among the first r,

        AP@K = sum over r <= K of w(c(r)) hit(r) precision(r) / W

    where W is the sum of the image's own K largest class weights, so that the best order gives 1.
    With equal weights it is the AP@K of information retrieval, over min(K, number of classes).

    Args:
      ranking: result of `rank`.
      labels: `[N, C]` of 0 and 1.
      weights: `[C]`, at least 0.

    Returns:
      `[N]` float32; NaN for an image whose classes all have weight 0.
    """
    hits = ranking['hits'].astype(jnp.float32)
    depth = hits.shape[1]
    # By keyword: jax2onnx, once imported, leaves a `cumsum` that takes nothing else.
    precision = jnp.cumsum(hits, axis=1) / jnp.arange(1, depth + 1)
    gained = jnp.sum(weights[ranking['classes']] * hits * precision, 1)
    possible = jax.lax.top_k(jnp.where(labels > 0, weights, 0.0), depth)[0].sum(1)
    return (gained / possible).astype(jnp.float32)


def mean_average_precision(ranking: dict[str, Any], weights: np.ndarray) -> float:
    """The mean of the AP of each class, weighted by class: the second reading of MAP@100.

    The images that have a class among their K best are ranked by its score. Its AP is the sum of
    the precision at each hit, over the number of all images of the class: those that do not have it
    among their K best are never found. Images of equal score share the precision after the last of
    them, as in scikit-learn, so the order of images does not matter. Classes without an image are
    left out; the result is 0 if no other class has a weight.

    Args:
      ranking: results of `rank` of all batches, concatenated.
      weights: `[C]`, at least 0.
    """
    counted = ranking['classes'] >= 0
    classes, scores, hits = (ranking[key][counted] for key in ('classes', 'scores', 'hits'))
    order = np.lexsort((-scores, classes))
    classes, scores, hits = classes[order], scores[order], hits[order]
    positives = ranking['positives'].astype(np.int64).sum(0)
    found = np.concatenate([[0], np.cumsum(hits)])  # in the first n
    starts = np.searchsorted(classes, classes)  # of the class of each one
    last = np.ones(len(classes), bool)  # of equal scores
    last[:-1] = (classes[1:] != classes[:-1]) | (scores[1:] != scores[:-1])
    ends = np.flatnonzero(last)[np.cumsum(last) - last] + 1
    precision = (found[ends] - found[starts]) / (ends - starts)
    gained = np.bincount(classes[hits], precision[hits], len(positives))
    weights = np.where(positives > 0, weights, 0.0).astype(np.float64)
    total = weights.sum()
    return float((weights * gained / np.maximum(positives, 1)).sum() / total) if total else 0.0
