"""The parts of a study."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings that are trained once per seed.

    Attributes:
      name: name of its folder; studies that share a variant share its runs.
      label: its name in tables and figures.
      file: its config file, relative to the root of the project.
      overrides: settings that differ from the file, by path.
      seeds: one run each.
      paper: numbers of the paper, by metric ('map100' for both readings of MAP@100), and
        'parameters' and 'steps_per_second'.
    """

    name: str
    label: str
    file: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """Curves over steps, as one of the paper's figures shows them.

    Attributes:
      title: such as 'Figure 6'.
      paper: name of the figure in `experiments/paper_curves.csv`; '' for none.
      series: name of the curve there, by the name of the variant.
    """

    title: str
    paper: str
    series: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants that are trained to be compared.

    Attributes:
      title: what it compares.
      variants: the others are compared with the first.
      metrics: names of metrics in `xception_flax.training.metrics.METRICS`; the first is drawn and
        compared.
      num_classes: number of classes; None if only a run knows it.
      figures: curves to draw.
      paper_data: the data set of the paper's numbers, if it is another.
      held_out: the images whose results count, measured once after a run's end and kept in its
        `held_out.json`; '' if those of the last evaluation count.
    """

    title: str
    variants: tuple[Variant, ...]
    metrics: tuple[str, ...]
    num_classes: int | None = None
    figures: tuple[PaperFigure, ...] = ()
    paper_data: str = ''
    held_out: str = ''


def grid(
    file: str,
    axes: Mapping[str, Sequence[Any]],
    seeds: tuple[int, ...] = (0,),
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Variant, ...]:
    """One variant for each combination of values.

    Args:
      file: config file that all variants start from.
      axes: values of each setting, by path.
      seeds: seeds of each combination.
      overrides: other settings that differ from the file, the same in all variants.
    """
    variants = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        label = ', '.join(f'{path.rpartition(".")[2]} {value}' for path, value in point.items())
        name = label.replace(', ', '-').replace(' ', '_').replace('/', '_')
        variants.append(Variant(name, label, file, {**(overrides or {}), **point}, seeds))
    return tuple(variants)
