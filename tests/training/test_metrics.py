"""Accuracy; and a metric that is added to the list is measured, shown and can be the best."""

import contextlib
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import entries, small_config
from matplotlib.figure import Figure
from sklearn.metrics import top_k_accuracy_score

from xception_flax.base.errors import UserError
from xception_flax.training import loop, metrics
from xception_flax.training.metrics import in_top
from xception_flax.training.setup import set_up


@pytest.mark.parametrize('k', [1, 2, 5])
def test_top_k_is_scikit_learns(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 8)).astype(np.float32), rng.integers(0, 8, 500)
    ours = in_top(jnp.array(logits), jnp.array(labels), k)
    assert float(ours.mean()) == pytest.approx(top_k_accuracy_score(labels, logits, k=k), abs=1e-6)


def test_of_equal_logits_the_first_is_the_largest():
    logits = jnp.zeros((3, 3))
    labels = jnp.array([0, 1, 2])
    assert in_top(logits, labels, 1).tolist() == [1, 0, 0]
    assert in_top(logits, labels, 2).tolist() == [1, 1, 0]


def test_logits_that_are_not_finite_are_wrong_even_among_few_classes():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.nan], [0.0, jnp.inf], [1.0, jnp.nan]])
    assert in_top(logits, jnp.array([0, 0, 0, 1]), 5).tolist() == [0, 1, 1, 0]
    assert in_top(logits, jnp.array([0, 0, 0, 1]), 1).tolist() == [0, 0, 0, 0]


def test_with_fewer_than_five_classes_top_five_is_all():
    assert in_top(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1]), 5).tolist() == [1]


def test_any_label_of_a_multi_label_image_may_be_in_the_top():
    logits = jnp.array([[3.0, 2.0, 1.0, 0.0]] * 4)
    labels = jnp.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]])
    assert in_top(logits, labels, 1).tolist() == [0, 1, 0, 0]
    assert in_top(logits, labels, 2).tolist() == [1, 1, 0, 0]
    assert in_top(logits, labels, 3).tolist() == [1, 1, 0, 1]


def entropies(logits, labels, counted, task):
    log_p = jax.nn.log_softmax(logits)
    return metrics.mean_over_images(-jnp.sum(jnp.exp(log_p) * log_p, 1), counted)


ENTROPY = metrics.Metric('entropy', 'entropy of the predictions', entropies, metrics.mean)
LOSS = metrics.by_name('loss')


@pytest.fixture(scope='module', params=[ENTROPY, LOSS], ids=lambda metric: metric.name)
def run(request, tmp_path_factory):
    """A run with one more metric: the metric of the best, its folder, its output, its figures.

    The first step has a learning rate of 0, the others have one that spoils the network: the first
    checkpoint has the lowest loss and the highest entropy.
    """
    workdir = tmp_path_factory.mktemp('metrics')
    config = small_config(
        model='lenet5', image_size=32, best=request.param.name, total_steps=3, eval_steps=1,
        keep_last=1, keep_best=1, schedule__learning_rate=5.0, schedule__warmup_steps=2,
    )  # fmt: skip
    figures = []

    def savefig(figure, *args, **kwargs):
        figures.append({axes.get_ylabel(): len(axes.lines) for axes in figure.axes})

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr(metrics, 'METRICS', (*metrics.METRICS, ENTROPY))
        patch.setattr(Figure, 'savefig', savefig)
        loop.train(config, workdir)
    return request.param, workdir, output.getvalue(), figures


def test_another_metric_is_written_printed_and_drawn(run):
    _, workdir, output, figures = run
    values = [entry['entropy'] for entry in entries(workdir) if 'weights' in entry]
    assert len(values) == 3
    assert all(0 <= value <= math.log(10) for value in values)
    for value in values:
        assert f'  entropy of the predictions {value:.4f}  (360 examples)' in output
    assert [figure['entropy of the predictions'] for figure in figures] == [1, 1, 1]


def test_the_best_checkpoint_is_the_one_of_the_chosen_metric(run):
    metric, workdir, output, _ = run
    values = {e['step']: e[metric.name] for e in entries(workdir) if 'weights' in e}
    best = (max if metric.higher_is_better else min)(values, key=values.get)
    assert best != 3  # which is kept as the last one
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {f'{best}', '3'}
    assert f'best {metric.label} at {best}' in output


def test_a_best_metric_that_does_not_apply_is_an_error():
    says = r"is 'map100_pictures', which does not apply .* choose from \['loss', 'top1', 'top5'\]$"
    with pytest.raises(UserError, match=says) as caught:
        set_up(small_config(best='map100_pictures'))
    assert '\n' not in str(caught.value)


@pytest.mark.slow
def test_a_caller_keeps_64_bit_types_and_a_float32_run_its_bits(tmp_path, float64):
    settings = {'model': 'lenet5', 'image_size': 32, 'total_steps': 2, 'eval_steps': 2}
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(small_config(**settings), tmp_path / 'wide')
        assert jax.config.jax_enable_x64
        jax.config.update('jax_enable_x64', False)
        loop.train(small_config(**settings), tmp_path / 'narrow')
    for a, b in zip(*(entries(tmp_path / name) for name in ('wide', 'narrow')), strict=True):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)
