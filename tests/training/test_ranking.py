import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

from xception_flax.training.ranking import average_precision, mean_average_precision, rank


def multi_label_images(images, classes, levels=None, seed=0):
    """Scores (of a number of levels, so with ties), labels and class weights."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(images, classes))
    if levels:
        scores = np.round(scores * levels) / levels + 0.0  # no -0
    labels = (rng.random((images, classes)) < 0.1).astype(np.int32)
    labels[np.arange(images), rng.integers(0, classes, images)] = 1
    return scores.astype(np.float32), labels, rng.random(classes)


def over_classes(scores, labels, weights, depth=100, batch=7, counted=None):
    """`mean_average_precision` of the rankings of batches."""
    counted = np.ones(len(scores), bool) if counted is None else counted
    parts = []
    for i in range(0, len(scores), batch):
        one = slice(i, i + batch)
        parts.append(rank(jnp.array(scores[one]), jnp.array(labels[one]), counted[one], depth))
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *jax.device_get(parts))
    return mean_average_precision(whole, weights)


def by_image(scores, labels, weights, depth):
    """AP@K of each image by its definition, one rank after the other."""
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
    """The weighted mean of the AP of each class by its definition."""
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
def test_both_readings_of_map_follow_their_definitions(depth, levels):
    scores, labels, weights = multi_label_images(40, 30, levels)
    labels[:, 3] = 0  # a class without an image
    ranking = rank(jnp.array(scores), jnp.array(labels), np.ones(40, bool), depth)
    ours = average_precision(ranking, jnp.array(labels), jnp.array(weights))
    # float32 sums of at most 30 terms
    expected = by_image(scores, labels, weights, depth)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    assert over_classes(scores, labels, weights, depth) == pytest.approx(
        by_class(scores, labels, weights, depth), rel=1e-9
    )


def test_where_all_classes_are_ranked_both_readings_are_scikit_learns():
    scores, labels, _ = multi_label_images(60, 20)
    even = jnp.ones(20)
    ranking = rank(jnp.array(scores), jnp.array(labels), np.ones(60, bool))
    ours = average_precision(ranking, jnp.array(labels), even).mean()
    assert float(ours) == pytest.approx(
        label_ranking_average_precision_score(labels, scores), rel=1e-6
    )
    scores, labels, weights = multi_label_images(60, 20, levels=2)  # with ties
    each = average_precision_score(labels, scores, average=None)
    assert over_classes(scores, labels, weights) == pytest.approx(
        np.average(each, weights=weights), rel=1e-9
    )


def test_the_reading_over_classes_depends_neither_on_order_nor_on_batches():
    scores, labels, weights = multi_label_images(50, 120, levels=1)
    order = np.random.default_rng(1).permutation(50)
    once = over_classes(scores, labels, weights, batch=50)
    assert over_classes(scores[order], labels[order], weights) == once


def test_padding_does_not_count():
    scores, labels, weights = multi_label_images(20, 150)
    counted = np.arange(20) % 3 > 0
    some = over_classes(scores, labels, weights, counted=counted)
    assert some == over_classes(scores[counted], labels[counted], weights)


def test_a_perfect_order_has_a_map_of_one_and_nan_is_no_hit():
    _, labels, weights = multi_label_images(20, 150)

    def over_images(scores):
        ranking = rank(jnp.array(scores), jnp.array(labels), np.ones(20, bool))
        return average_precision(ranking, labels, weights)

    # Of an image's own classes, those of most weight first.
    np.testing.assert_allclose(over_images(labels * (1 + weights)), 1, rtol=1e-6)
    assert over_classes(labels * 1.0, labels, weights) == 1
    np.testing.assert_array_equal(over_images(np.full((20, 150), np.nan, np.float32)), 0)


def test_images_whose_classes_have_weight_zero_have_no_ap():
    scores = jnp.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    labels, weights = jnp.array([[1, 0, 0], [0, 1, 0]]), jnp.array([0.0, 1.0, 1.0])
    ranking = rank(scores, labels, np.ones(2, bool))
    found = average_precision(ranking, labels, weights)
    np.testing.assert_array_equal(found, [np.nan, 0.5])
