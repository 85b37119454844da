import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    top_k_accuracy_score,
)

from xception_flax.training.metrics import PooledRankings, average_precision, in_top, rank


@pytest.mark.parametrize('k', [1, 2, 5])
def test_top_k_is_scikit_learns(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 8)).astype(np.float32), rng.integers(0, 8, 500)
    ours = in_top(jnp.array(logits), jnp.array(labels), k)
    assert float(ours.mean()) == pytest.approx(top_k_accuracy_score(labels, logits, k=k), abs=1e-6)


def test_of_equal_logits_the_first_counts_as_the_largest():
    logits = jnp.zeros((3, 3))
    labels = jnp.array([0, 1, 2])
    assert in_top(logits, labels, 1).tolist() == [1, 0, 0]
    assert in_top(logits, labels, 2).tolist() == [1, 1, 0]


def test_no_number_is_wrong_even_among_few_classes():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.nan], [0.0, jnp.inf], [1.0, jnp.nan]])
    assert in_top(logits, jnp.array([0, 0, 0, 1]), 5).tolist() == [0, 1, 1, 0]
    assert in_top(logits, jnp.array([0, 0, 0, 1]), 1).tolist() == [0, 0, 0, 0]


def test_with_fewer_than_five_classes_top_five_is_all():
    assert in_top(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1]), 5).tolist() == [1]


def test_of_several_classes_any_may_be_in_the_top():
    logits = jnp.array([[3.0, 2.0, 1.0, 0.0]] * 4)
    labels = jnp.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]])
    assert in_top(logits, labels, 1).tolist() == [0, 1, 0, 0]
    assert in_top(logits, labels, 2).tolist() == [1, 1, 0, 0]
    assert in_top(logits, labels, 3).tolist() == [1, 1, 0, 1]


def pictures_of_several_classes(pictures, classes, levels=None, seed=0):
    """Scores (with ties, if there are only so many levels), labels and class weights."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(pictures, classes))
    if levels:
        scores = np.round(scores * levels) / levels + 0.0  # no -0
    labels = (rng.random((pictures, classes)) < 0.1).astype(np.int32)
    labels[np.arange(pictures), rng.integers(0, classes, pictures)] = 1
    return scores.astype(np.float32), labels, rng.random(classes)


def pooled(scores, labels, depth, batch=7, counted=None):
    found = PooledRankings()
    counted = np.ones(len(scores), bool) if counted is None else counted
    for i in range(0, len(scores), batch):
        one = slice(i, i + batch)
        found.add(rank(jnp.array(scores[one]), jnp.array(labels[one]), counted[one], depth))
    return found


def by_picture(scores, labels, weights, depth):
    """AP@K of each picture as its definition says it, one rank after the other."""
    found = []
    for row, truth in zip(scores, labels, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))[:depth]
        hits, gained = 0, 0.0
        for r, c in enumerate(order, 1):
            if truth[c]:
                hits += 1
                gained += weights[c] * hits / r
        best = sorted((weights[c] for c in np.flatnonzero(truth)), reverse=True)[:depth]
        found.append(gained / sum(best))
    return found


def by_class(scores, labels, weights, depth):
    """The weighted mean of the AP of each class as its definition says it."""
    lists = {c: [] for c in range(scores.shape[1])}
    for row, truth in zip(scores, labels, strict=True):
        for c in sorted(range(len(row)), key=lambda c: (-row[c], c))[:depth]:
            lists[c].append((row[c], truth[c]))
    total = mean = 0.0
    for c, items in lists.items():
        positives = labels[:, c].sum()
        if not positives:
            continue
        ap = 0.0
        for score, truth in items:
            as_good = [t for s, t in items if s >= score]
            ap += truth * sum(as_good) / len(as_good) / positives
        mean += weights[c] * ap
        total += weights[c]
    return mean / total


@pytest.mark.parametrize(('depth', 'levels'), [(4, None), (4, 2), (30, 2)])
def test_both_readings_of_map_are_what_their_definitions_say(depth, levels):
    scores, labels, weights = pictures_of_several_classes(40, 30, levels)
    labels[:, 3] = 0  # a class without a picture
    ranking = rank(jnp.array(scores), jnp.array(labels), np.ones(40, bool), depth)
    ours = average_precision(ranking, jnp.array(labels), jnp.array(weights))
    # float32 sums of at most 30 terms
    expected = by_picture(scores, labels, weights, depth)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    assert pooled(scores, labels, depth).mean_average_precision(weights) == pytest.approx(
        by_class(scores, labels, weights, depth), rel=1e-9
    )


def test_where_all_classes_are_ranked_both_readings_are_scikit_learns():
    scores, labels, _ = pictures_of_several_classes(60, 20)
    even = jnp.ones(20)
    ranking = rank(jnp.array(scores), jnp.array(labels), np.ones(60, bool))
    ours = average_precision(ranking, jnp.array(labels), even).mean()
    assert float(ours) == pytest.approx(
        label_ranking_average_precision_score(labels, scores), rel=1e-6
    )
    scores, labels, weights = pictures_of_several_classes(60, 20, levels=2)  # with ties
    each = average_precision_score(labels, scores, average=None)
    assert pooled(scores, labels, 100).mean_average_precision(weights) == pytest.approx(
        np.average(each, weights=weights), rel=1e-9
    )


def test_no_order_of_pictures_and_no_batch_size_changes_the_pooled_reading():
    scores, labels, weights = pictures_of_several_classes(50, 120, levels=1)
    order = np.random.default_rng(1).permutation(50)
    once = pooled(scores, labels, 100, batch=50).mean_average_precision(weights)
    assert pooled(scores[order], labels[order], 100).mean_average_precision(weights) == once


def test_filling_counts_in_neither_reading():
    scores, labels, weights = pictures_of_several_classes(20, 150)
    counted = np.arange(20) % 3 > 0
    some = pooled(scores, labels, 100, counted=counted).mean_average_precision(weights)
    alone = pooled(scores[counted], labels[counted], 100).mean_average_precision(weights)
    assert some == alone


def test_a_perfect_order_has_a_map_of_one_and_no_number_is_no_hit():
    _, labels, weights = pictures_of_several_classes(20, 150)
    rate = lambda scores: average_precision(  # noqa: E731
        rank(jnp.array(scores), jnp.array(labels), np.ones(20, bool)), labels, weights
    )
    # Of a picture's own classes, those of most weight first.
    np.testing.assert_allclose(rate(labels * (1 + weights)), 1, rtol=1e-6)
    assert pooled(labels * 1.0, labels, 100).mean_average_precision(weights) == 1
    np.testing.assert_array_equal(rate(np.full((20, 150), np.nan, np.float32)), 0)


def test_pictures_whose_classes_weigh_nothing_have_no_ap():
    scores = jnp.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    labels, weights = jnp.array([[1, 0, 0], [0, 1, 0]]), jnp.array([0.0, 1.0, 1.0])
    ranking = rank(scores, labels, np.ones(2, bool))
    found = average_precision(ranking, labels, weights)
    np.testing.assert_array_equal(found, [np.nan, 0.5])
