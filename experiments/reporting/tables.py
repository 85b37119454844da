"""The tables of a report."""

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reporting import significance
from experiments.reporting.collect import Measured
from experiments.studies.study import Study
from xception_flax.models import build_model, counts
from xception_flax.training import metrics

NOT_RUN = 'not run'
NO_NUMBER = '\N{EN DASH}'


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      title: heading above the table.
      header: names of the columns.
      rows: one cell per column.
      note: text below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ''

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ['---', *['---:'] * (len(self.header) - 1)], *self.rows]
        table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
        return f'### {self.title}\n\n{table}\n' + (f'\n{self.note}\n' if self.note else '')

    def html(self) -> str:
        """The table in HTML; it scrolls sideways on a narrow screen."""
        head = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in self.header)
        body = ''.join(f'<tr>{"".join(map(_cell, range(len(r)), r))}</tr>\n' for r in self.rows)
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ''
        return (
            f'<h3>{html.escape(self.title)}</h3>\n<div class="wide"><table>\n'
            f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{note}\n'
        )


def _cell(column: int, text: str) -> str:
    if column == 0:
        return f'<th scope="row">{html.escape(text)}</th>'
    kind = ' class="missing"' if text == NOT_RUN else ''
    return f'<td{kind}>{html.escape(text)}</td>'


def in_percent(metric: str) -> bool:
    """Whether a metric is shown in percent: accuracies are."""
    return metric.startswith('top')


def number(metric: str, value: float, signed: bool = False) -> str:
    """A metric's value as text."""
    sign = '+' if signed and not math.isnan(value) else ''
    return f'{100 * value:{sign}.2f}' if in_percent(metric) else f'{value:{sign}.4g}'


def label(metric: str) -> str:
    """A metric's name for people."""
    return metrics.by_name(metric).label


def results(study: Study, measured: Sequence[Measured]) -> Table:
    """Tables 1 and 2: the final values of the study's metrics beside those of the paper."""
    header, rows = ['network'], []
    for metric in study.metrics:
        header += [label(metric) + (', %' if in_percent(metric) else '')]
        header += [paper_column(study)] if _paper(study, metric) else []
    for one in measured:
        row = [one.variant.label]
        for metric in study.metrics:
            row.append(_mean(metric, list(one.results(metric).values()), one.begun))
            if column := _paper(study, metric):
                value = column.get(one.variant.name)
                row.append(NO_NUMBER if value is None else number(metric, value))
        rows.append([*row, _count(one)])
    of = f'On {study.held_out}, once' if study.held_out else 'Last evaluation of each finished run'
    note = (
        f'{of}, with the averaged weights if there are any. For several seeds: mean ± standard '
        'deviation.'
    )
    return Table('Results', [*header, 'seeds'], rows, note)


def paper_column(study: Study) -> str:
    """The name of the column with the paper's numbers."""
    return f'paper ({study.paper_data})' if study.paper_data else 'paper'


def _paper(study: Study, metric: str) -> dict[str, float]:
    """The paper's values by variant; both readings of MAP@100 share one."""
    key = 'map100' if metric.startswith('map100') else metric
    return {v.name: v.paper[key] for v in study.variants if key in v.paper}


def _mean(metric: str, values: Sequence[float], begun: bool) -> str:
    if not values:
        return 'not done' if begun else NOT_RUN
    text = number(metric, float(np.mean(values)))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f'{text} ± {number(metric, spread)}' if len(values) > 1 else text


def _count(one: Measured) -> str:
    done = sum(run.results is not None for run in one.runs.values())
    return str(done) if done == len(one.runs) else f'{done} of {len(one.runs)}'


def costs(study: Study, measured: Sequence[Measured], speed: dict[str, Any]) -> Table:
    """Table 3: parameters, multiply-adds, and training steps per second measured side by side."""
    networks = speed.get('networks', {})
    header = ['network', 'parameters', 'multiply-adds', 'training steps/s', 'images/s']
    parameters, steps = (_paper(study, key) for key in ('parameters', 'steps_per_second'))
    if parameters:
        header += ['paper: parameters', 'paper: steps/s']
    rows = []
    for one in measured:
        row = [one.variant.label, NO_NUMBER, NO_NUMBER, NOT_RUN, NOT_RUN]
        if one.config.dataset.num_classes:
            model = build_model(one.config, one.config.dataset.num_classes)
            network = counts.summarise(model, one.config.image_size)
            row[1:3] = f'{network.parameters:,}', f'{network.macs:,}'
        if one.variant.name in networks:
            timed = networks[one.variant.name]
            row[3] = f'{timed["steps_per_second"]:.3g}'
            row[4] = f'{timed["steps_per_second"] * timed["batch_size"]:,.0f}'
        if parameters:
            count, rate = (column.get(one.variant.name) for column in (parameters, steps))
            row += [f'{count:,}' if count else NO_NUMBER, f'{rate:g}' if rate else NO_NUMBER]
        rows.append(row)
    note = 'Multiply-adds: convolutions and dense layers, one image.'
    if networks:
        sizes = {f'{n["batch_size"]} images in {n["dtype"]}' for n in networks.values()}
        note += (
            f' Speed: experiments.speed on {speed["devices"]}, jax {speed["jax"]}; median of '
            f'{speed["rounds"]} turns of {speed["steps"]} steps of {", ".join(sorted(sizes))}; the '
            'networks take turns in one process.'
        )
    return Table('Costs', header, rows, note)


def comparisons(study: Study, measured: Sequence[Measured]) -> Table | None:
    """Compares the first network with each other one; None if it is alone."""
    metric = study.metrics[0]
    first, *others = measured
    if not others:
        return None
    scale = ', points' if in_percent(metric) else ''
    header = [
        f'{first.variant.label} minus', f'{label(metric)}{scale}', '95 % interval', 'p', 'p, Holm',
        'seeds',
    ]  # fmt: skip
    paper = _paper(study, metric)
    if paper:
        header += [paper_column(study), 'same sign?']
    found = [_difference(metric, first, other) for other in others]
    adjusted = significance.holm([one.p if one else math.nan for one in found])
    rows = []
    for other, difference, holm in zip(others, found, adjusted, strict=True):
        row = [other.variant.label, *[NOT_RUN] * 4, NO_NUMBER]
        if difference:
            row[1:] = [
                number(metric, difference.mean, signed=True),
                _interval(metric, difference),
                _p(difference.p),
                _p(holm),
                ' and '.join(map(str, difference.seeds)),
            ]
        if paper:
            row += _agreement(
                metric,
                difference,
                holm,
                paper.get(first.variant.name),
                paper.get(other.variant.name),
            )
        rows.append(row)
    note = (
        "Welch's t-test for independent runs, which assumes normal results. Holm's p holds for all "
        'comparisons of this table together: at 0.05 or above, a sign is undecided. Neither covers '
        'the choice of test images.'
    )
    return Table('Comparisons', header, rows, note)


def _difference(metric: str, ours: Measured, theirs: Measured) -> significance.Difference | None:
    results = [list(one.results(metric).values()) for one in (ours, theirs)]
    return significance.welch(*results) if all(results) else None


def _interval(metric: str, found: significance.Difference) -> str:
    if math.isnan(found.low):
        return 'one seed'
    return f'{number(metric, found.low, True)} to {number(metric, found.high, True)}'


def _p(p: float) -> str:
    return NO_NUMBER if math.isnan(p) else f'{p:.2g}'


def _agreement(
    metric: str,
    found: significance.Difference | None,
    holm: float,
    ours: float | None,
    theirs: float | None,
) -> list[str]:
    """The paper's difference, and whether ours has its sign, if Holm's p is below 0.05."""
    if ours is None or theirs is None:
        return [NO_NUMBER, NO_NUMBER]
    text = number(metric, ours - theirs, signed=True)
    if found is None:
        return [text, NOT_RUN]
    if not holm < 0.05:
        return [text, 'undecided']
    return [text, 'yes' if (found.mean > 0) == (ours > theirs) else 'no']


def listing(study: Study, measured: Sequence[Measured]) -> Table:
    """All runs with their results and progress."""
    rows = []
    for one in measured:
        for seed, run in one.runs.items():
            standing, found = run.standing, [run.final(metric) for metric in study.metrics]
            values = [
                NO_NUMBER if value is None else number(metric, value)
                for metric, value in zip(study.metrics, found, strict=True)
            ]
            state = f'done, {standing.step:,} steps' if standing.results else str(standing)
            state = NOT_RUN if not standing.step else state
            rows.append([one.variant.label, str(seed), *values, state])
    header = ['run', 'seed', *map(label, study.metrics), 'state']
    return Table('Runs', header, rows)
