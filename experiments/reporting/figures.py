"""The curves of a report, over gradient steps."""

import csv
import io
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.reporting.collect import Measured
from experiments.studies.study import Figure, Study

PAPER = pathlib.Path(__file__).parents[1] / 'paper_curves.csv'
# To be told apart on white and on black, also by those who do not see red and green.
COLOURS = ('#2f7fd0', '#d9731a', '#1d9a72', '#b45bc4', '#c9485b', '#8a8f2a', '#5f6fd8', '#a0703c')
INK = '#0a0b0c'  # of axes and text; becomes the page's own colour
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


def draw(study: Study, figure: Figure, measured: Sequence[Measured]) -> Drawing:
    """Draws one figure: the mean over seeds, between the lowest and the highest.

    The paper's own curves are dashed behind. Colours follow the order of the study's networks.

    Args:
      study: whose first metric is drawn.
      figure: which networks, and which curves of the paper.
      measured: the study's networks.
    """
    metric = next(iter(study.metrics))
    paper = paper_curves(figure.paper)
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(4.6, 3.8), layout='constrained')
        axes = drawing.subplots()
        for i, one in enumerate(measured):
            if one.variant.name not in figure.series:
                continue
            colour = COLOURS[i % len(COLOURS)]
            points = paper.get(figure.series[one.variant.name])
            if points:
                source = f'paper, {study.paper_data}' if study.paper_data else 'paper'
                label = f'{one.variant.label} ({source})'
                axes.plot(*zip(*points, strict=True), '--', color=colour, alpha=0.75, label=label)
            if not _curve(axes, one, metric, colour):
                axes.plot([], [], color=colour, marker='.', label=f'{one.variant.label}: not run')
        axes.set(xlabel='gradient steps', ylabel=study.metrics[metric])
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))  # 20k, 30M
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(alpha=0.25, color=INK, linewidth=0.6)
        drawing.legend(loc='outside lower left', frameon=False, fontsize=9)
    return drawing


def _curve(axes: Axes, one: Measured, metric: str, colour: str) -> bool:
    """Draws the runs that are through, or else those that have begun; gives whether any has."""
    through = [seed for seed in one.seeds.values() if seed.standing.results is not None]
    curves = [seed.curve(metric) for seed in through or one.seeds.values()]
    curves = [curve for curve in curves if curve]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return False
    values = [[curve[step] for curve in curves] for step in steps]
    label = one.variant.label + (f' ({len(curves)} seeds)' if len(curves) > 1 else '')
    means = [statistics.mean(v) for v in values]
    axes.plot(steps, means, color=colour, label=label, marker='.', zorder=3)
    if len(curves) > 1:
        band = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(steps, *band, color=colour, alpha=0.2, linewidth=0, zorder=2)
    return True


def paper_curves(figure: str) -> dict[str, list[tuple[int, float]]]:
    """The curves of one of the paper's figures, (step, value), as they were read off the picture.

    Args:
      figure: such as 'fig6'; '' for none.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    with PAPER.open(newline='') as file:
        for row in csv.DictReader(file):
            if row['figure'] == figure:
                found.setdefault(row['series'], []).append((int(row['step']), float(row['value'])))
    return found


def inline_svg(drawing: Drawing, name: str, description: str) -> str:
    """The drawing as part of a page: without background, in the page's own ink.

    Args:
      drawing: what to write.
      name: sets its ids apart from those of other drawings on the page.
      description: for those who do not see it.
    """
    text = _svg(drawing, name, transparent=True)
    text = text[text.index('<svg') :].replace(INK, 'currentColor')
    text = re.sub(r'(\bid="|"#|url\(#)', rf'\g<1>{name}-', text)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', '', text, count=1)
    return text.replace('<svg', f'<svg role="img" aria-label="{description}"', 1)


def save(drawing: Drawing, path: pathlib.Path) -> None:
    """Writes the drawing on white, as PATH.png and PATH.svg."""
    drawing.savefig(path.with_suffix('.png'), dpi=160, facecolor='white')
    path.with_suffix('.svg').write_text(_svg(drawing, path.stem, transparent=False))


def _svg(drawing: Drawing, name: str, transparent: bool) -> str:
    buffer = io.StringIO()
    same: dict[Any, Any] = {'svg.hashsalt': name}  # the same drawing, the same bytes
    with matplotlib.rc_context(STYLE | same):
        for axes in drawing.axes:
            axes.patch.set_alpha(0.0)
        face = 'none' if transparent else 'white'
        drawing.savefig(buffer, format='svg', facecolor=face, metadata={'Date': None})
    return buffer.getvalue()
