"""Metrics: what an evaluation measures, one value each.

To add one, append a `Metric` to `METRICS`: the evaluation step updates it, `metrics.jsonl`, the log
and the curves show it, and `config.best` can name it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xception_flax.training import losses, ranking

Array = jax.Array
Totals = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is evaluated.

    Attributes:
      loss: name of the loss, 'softmax' or 'sigmoid'.
      class_weights: weight of each class in MAP@100, `[C]`.
      subset: the classes that occur, where they are not all; else ().
    """

    loss: str
    class_weights: np.ndarray
    subset: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that an evaluation measures.

    Attributes:
      name: its key in `metrics.jsonl`.
      label: its name for people.
      update: `(logits [N, C], labels [N] or [N, C] of 0 and 1, counted [N] bool, task) -> totals`
        of a batch, a pytree; None where the metric does not apply. It is traced by JAX.
      compute: `(totals, task) -> float` of the whole evaluation.
      gathered: whether `compute` takes the totals of all batches concatenated along their first
        axis; else they are added.
      higher_is_better: which of two values is better.
      logged: whether the log of training batches shows it, too.
      drawn: whether the curves show it.
      log_scale: whether they do so on a logarithmic axis.
    """

    name: str
    label: str
    update: Callable[[Array, Array, Array, Task], Totals | None]
    compute: Callable[[Totals, Task], Any]
    gathered: bool = False
    higher_is_better: bool = True
    logged: bool = False
    drawn: bool = True
    log_scale: bool = False


def mean_over_images(values: Array, counted: Array) -> Totals:
    """The totals for `mean`, of one value per image, `[N]`."""
    return {'sum': jnp.sum(jnp.where(counted, values, 0)), 'count': jnp.sum(counted)}


def mean(totals: Totals, task: Task) -> Any:
    """The mean over images; 0 if there is none."""
    return totals['sum'] / (totals['count'] + (totals['count'] == 0))


def in_top(logits: Array, labels: Array, k: int) -> Array:
    """Whether the true class, or one of several, is among the `k` largest logits.

    Of equal logits the one with the lower index counts as the larger, as in `argmax`. An image is
    wrong if its true logit is not finite or it has no label.

    Args:
      logits: `[N, C]`.
      labels: `[N]` int32, or `[N, C]` of 0 and 1.
      k: number of logits that count.

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


def _top(logits: Array, labels: Array, counted: Array, task: Task, k: int) -> Totals:
    return mean_over_images(in_top(logits, labels, k), counted)


def _top_of_subset(
    logits: Array, labels: Array, counted: Array, task: Task, k: int
) -> Totals | None:
    if not len(task.subset):
        return None
    within = np.isin(np.arange(logits.shape[1]), task.subset)
    return _top(jnp.where(within, logits, -jnp.inf), labels, counted, task, k)


def _loss(logits: Array, labels: Array, counted: Array, task: Task) -> Totals:
    targets = losses.as_targets(labels, logits.shape[1], task.loss)
    return mean_over_images(losses.LOSSES[task.loss](logits, targets), counted)


def _rank(logits: Array, labels: Array, counted: Array, task: Task) -> ranking.Ranking | None:
    if labels.ndim == 1:
        return None
    # Logits of softmax are not comparable between images, probabilities are.
    scores = jax.nn.log_softmax(logits) if task.loss == 'softmax' else logits
    return ranking.rank(scores, labels, counted)


def _average_precision(logits: Array, labels: Array, counted: Array, task: Task) -> Totals | None:
    ranked = _rank(logits, labels, counted, task)
    if ranked is None:
        return None
    found = ranking.average_precision(ranked, labels, jnp.asarray(task.class_weights))
    return mean_over_images(found, counted & ~jnp.isnan(found))


METRICS: tuple[Metric, ...] = (
    Metric('top1', 'top-1', functools.partial(_top, k=1), mean, logged=True),
    Metric('top5', 'top-5', functools.partial(_top, k=5), mean, drawn=False),
    # Where only some classes occur: among these.
    Metric(
        'top1_subset', 'top-1 among its classes', functools.partial(_top_of_subset, k=1), mean,
        drawn=False,
    ),
    Metric(
        'top5_subset', 'top-5 among its classes', functools.partial(_top_of_subset, k=5), mean,
        drawn=False,
    ),
    # Of multi-label images: the two readings of MAP@100 (training/ranking.py).
    Metric('map100_pictures', 'MAP@100 over images', _average_precision, mean),
    Metric(
        'map100_classes', 'MAP@100 over classes', _rank,
        lambda totals, task: ranking.mean_average_precision(totals, task.class_weights),
        gathered=True,
    ),
    Metric('loss', 'loss', _loss, mean, higher_is_better=False, log_scale=True),
)  # fmt: skip


def by_name(name: str) -> Metric:
    """The metric of that name."""
    return next(metric for metric in METRICS if metric.name == name)


def score(name: str, results: Mapping[str, Any]) -> float:
    """The value of a metric in the results of an evaluation, so that the highest is the best.

    Args:
      name: the metric's name.
      results: values by metric; where it is missing or not a number, the score is the lowest.
    """
    metric = by_name(name)
    value = float(results.get(metric.name, 'nan'))
    if math.isnan(value):
        return -math.inf
    return value if metric.higher_is_better else -value


def exhausted(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` of some scores are no better than those before; not with 0."""
    if not 0 < patience < len(scores):
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])


def applicable(task: Task, num_classes: int, multi_label: bool) -> list[str]:
    """The names of the metrics that apply; labels are `[N, C]` if `multi_label`, else `[N]`."""
    rows = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
    labels = rows if multi_label else jax.ShapeDtypeStruct((1,), jnp.int32)
    counted = jax.ShapeDtypeStruct((1,), bool)
    return list(jax.eval_shape(functools.partial(updates, task=task), rows, labels, counted))


def updates(logits: Array, labels: Array, counted: Array, task: Task) -> dict[str, Totals]:
    """The totals of one batch, of each metric that applies, by its name."""
    found = {m.name: m.update(logits, labels, counted, task) for m in METRICS}
    return {name: totals for name, totals in found.items() if totals is not None}


def logged(logits: Array, labels: Array, task: Task) -> dict[str, Array]:
    """The metrics that the log of training shows, of one batch."""
    counted = jnp.ones(len(logits), bool)
    return {
        m.name: m.compute(m.update(logits, labels, counted, task), task)
        for m in METRICS
        if m.logged
    }


class Sums:
    """The totals of all batches so far."""

    def __init__(self) -> None:
        self._added: dict[str, Totals] = {}  # on the devices
        self._gathered: dict[str, list[Totals]] = {}

    def add(self, batch: dict[str, Totals]) -> None:
        """Adds the `updates` of a batch; waits for the devices only where a metric gathers."""
        gathered = {m.name for m in METRICS if m.gathered}
        for name in gathered & batch.keys():
            self._gathered.setdefault(name, []).append(jax.device_get(batch[name]))
        new = {name: totals for name, totals in batch.items() if name not in gathered}
        self._added = _add(self._added, new) if self._added else new

    def block_until_ready(self) -> None:
        """Waits until the devices have added everything."""
        jax.block_until_ready(self._added)

    def compute(self, task: Task) -> dict[str, float]:
        """The value of each metric."""
        totals = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(self._added))
        for name, batches in self._gathered.items():
            totals[name] = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
        return {m.name: float(m.compute(totals[m.name], task)) for m in METRICS if m.name in totals}


@jax.jit
def _add(total: Totals, new: Totals) -> Totals:
    return jax.tree.map(jnp.add, total, new)


def results_line(split: str, weights: str, values: dict[str, Any]) -> str:
    """The results of an evaluation as one line; `values` may be an entry of `metrics.jsonl`."""
    # An entry has values that are not finite as strings.
    texts = [f'{m.label} {float(values[m.name]):.4f}' for m in METRICS if m.name in values]
    return (
        f'{split}, {weights} weights: {"  ".join(texts)}  ({round(values["examples"]):,} examples)'
    )
