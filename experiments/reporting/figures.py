"""The curves of a report over gradient steps."""

import csv
import io
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.reporting.collect import Measured
from experiments.studies.study import PaperFigure, Study
from xception_flax.training import metrics

PAPER = pathlib.Path(__file__).parents[1] / 'paper_curves.csv'
# Distinct on white and on black, also without the difference of red and green.
COLOURS = ('#2f7fd0', '#d9731a', '#1d9a72', '#b45bc4', '#c9485b', '#8a8f2a', '#5f6fd8', '#a0703c')
INK = '#0a0b0c'  # colour of axes and text; on a page, that of its text
STYLE: dict[Any, Any] = {
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.size': 10,
    'legend.labelcolor': INK,
    'svg.fonttype': 'none',
    'text.color': INK,
    'xtick.color': INK,
    'ytick.color': INK,
}


def draw(study: Study, shown: PaperFigure, measured: Sequence[Measured]) -> Figure:
    """Draws one figure: the mean over seeds, and a band from the lowest to the highest.

    The paper's curves are dashed. Colours follow the order of the study's networks.

    Args:
      study: the study; its first metric is drawn.
      shown: the networks and curves of the paper to draw.
      measured: the networks of the study with their runs.
    """
    metric = metrics.by_name(study.metrics[0])
    paper = paper_curves(shown.paper)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.8), layout='constrained')
        axes = figure.subplots()
        for i, one in enumerate(measured):
            if one.variant.name not in shown.series:
                continue
            colour = COLOURS[i % len(COLOURS)]
            points = paper.get(shown.series[one.variant.name])
            if points:
                source = f'paper, {study.paper_data}' if study.paper_data else 'paper'
                label = f'{one.variant.label} ({source})'
                axes.plot(*zip(*points, strict=True), '--', color=colour, alpha=0.75, label=label)
            if not _curve(axes, one, metric.name, colour):
                axes.plot([], [], color=colour, marker='.', label=f'{one.variant.label}: not run')
        scale = 'log' if metric.log_scale else 'linear'
        axes.set(xlabel='gradient steps', ylabel=metric.label, yscale=scale)
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))  # 20k, 30M
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(alpha=0.25, color=INK, linewidth=0.6)
        figure.legend(loc='outside lower left', frameon=False, fontsize=9)
    return figure


def _curve(axes: Axes, one: Measured, metric: str, colour: str) -> bool:
    """Draws the finished runs, or else those that have begun; gives whether there are any."""
    finished = [run for run in one.runs.values() if run.standing.results is not None]
    curves = [run.curve(metric) for run in finished or one.runs.values()]
    curves = [curve for curve in curves if curve]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return False
    values = [[curve[step] for curve in curves] for step in steps]
    label = one.variant.label + (f' ({len(curves)} seeds)' if len(curves) > 1 else '')
    means = [float(np.mean(v)) for v in values]
    axes.plot(steps, means, color=colour, label=label, marker='.', zorder=3)
    if len(curves) > 1:
        band = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(steps, *band, color=colour, alpha=0.2, linewidth=0, zorder=2)
    return True


def paper_curves(figure: str) -> dict[str, list[tuple[int, float]]]:
    """The curves of one of the paper's figures as (step, value), read off the image.

    Args:
      figure: such as 'fig6'; '' for none.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    with PAPER.open(newline='') as file:
        for row in csv.DictReader(file):
            if row['figure'] == figure:
                found.setdefault(row['series'], []).append((int(row['step']), float(row['value'])))
    return found


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as part of a page: without background, in the colour of the page's text.

    Args:
      figure: the figure.
      name: prefix of its ids, which makes them unique on the page.
      description: text for readers who cannot see it.
    """
    text = _svg(figure, name, transparent=True)
    text = text[text.index('<svg') :].replace(INK, 'currentColor')
    text = re.sub(r'(\bid="|"#|url\(#)', rf'\g<1>{name}-', text)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', '', text, count=1)
    return text.replace('<svg', f'<svg role="img" aria-label="{description}"', 1)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes the figure on white, as PATH.png and PATH.svg."""
    figure.savefig(path.with_suffix('.png'), dpi=160, facecolor='white')
    path.with_suffix('.svg').write_text(_svg(figure, path.stem, transparent=False))


def _svg(figure: Figure, name: str, transparent: bool) -> str:
    buffer = io.StringIO()
    same: dict[Any, Any] = {'svg.hashsalt': name}  # the same figure gives the same bytes
    with matplotlib.rc_context(STYLE | same):
        for axes in figure.axes:
            axes.patch.set_alpha(0.0)
        face = 'none' if transparent else 'white'
        figure.savefig(buffer, format='svg', facecolor=face, metadata={'Date': None})
    return buffer.getvalue()
