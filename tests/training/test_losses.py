import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from xception_flax.training import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = RNG.integers(0, 6, 40)
TARGETS = np.eye(6, dtype=np.float32)[LABELS]


def test_softmax_is_the_log_loss():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    ours = losses.softmax(jnp.array(LOGITS), jnp.array(TARGETS)).mean()
    assert float(ours) == pytest.approx(log_loss(LABELS, p), rel=1e-5)


def test_sigmoid_sums_the_log_losses_of_the_classes():
    targets = (RNG.random((40, 6)) < 0.3).astype(np.float32)
    p = 1 / (1 + np.exp(-LOGITS))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(losses.sigmoid(LOGITS, targets), expected, rtol=1e-5)


def test_smoothing_spreads_over_classes_or_moves_to_a_half():
    np.testing.assert_allclose(
        losses.smooth(jnp.array([[0.0, 1.0]]), 0.1, 'softmax'), [[0.05, 0.95]], rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.smooth(jnp.array([[0.0, 1.0, 1.0]]), 0.1, 'sigmoid'), [[0.05, 0.95, 0.95]], rtol=1e-6
    )
    assert float(losses.smooth(jnp.array(TARGETS), 0.3, 'softmax').sum()) == pytest.approx(40)


def test_softmax_targets_divide_one_over_the_labels():
    rows = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    targets = losses.as_targets(jnp.array(rows), 4, 'softmax')
    np.testing.assert_array_equal(targets, [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(losses.as_targets(jnp.array(rows), 4, 'sigmoid'), rows)
