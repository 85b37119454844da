import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from xception_flax.training.metrics import in_top


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
