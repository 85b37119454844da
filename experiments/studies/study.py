"""What a study is made of."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings that are trained once for each seed.

    Attributes:
      name: of its folder; the same in two studies for what they have in common.
      label: what tables and figures call it.
      file: its config file, from the project's root.
      overrides: settings that differ from the file, by their paths.
      seeds: one run each.
      paper: the paper's numbers, by the names in a study's `metrics`, and 'parameters' and
        'steps_per_second'.
    """

    name: str
    label: str
    file: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Figure:
    """Curves over steps.

    Attributes:
      title: such as 'Figure 6'.
      paper: the figure's name in `experiments/paper_curves.csv`; '' where it does not apply.
      series: by the name of a variant, its curve's name there.
    """

    title: str
    paper: str
    series: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is trained to be compared.

    Attributes:
      title: what it compares.
      variants: the first is what the others are compared with.
      metrics: what counts in evaluations, by its name in `metrics.jsonl`; the first is drawn.
      num_classes: of the data; None where only a run tells.
      figures: of the paper.
      paper_data: the data set of the paper's numbers, where it is another.
    """

    title: str
    variants: tuple[Variant, ...]
    metrics: Mapping[str, str]
    num_classes: int | None = None
    figures: tuple[Figure, ...] = ()
    paper_data: str = ''


def grid(
    file: str,
    axes: Mapping[str, Sequence[Any]],
    seeds: tuple[int, ...] = (0,),
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Variant, ...]:
    """A variant for each combination of values.

    Args:
      file: the config file that all start from.
      axes: the values of each setting, by its path.
      seeds: of each combination.
      overrides: what else differs from the file, in all.
    """
    variants = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        label = ', '.join(f'{path.rpartition(".")[2]} {value}' for path, value in point.items())
        name = label.replace(', ', '-').replace(' ', '_').replace('/', '_')
        variants.append(Variant(name, label, file, {**(overrides or {}), **point}, seeds))
    return tuple(variants)
