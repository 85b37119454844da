"""The training curves of a run as an image."""

import io
from typing import Any

from xception_flax.base import paths
from xception_flax.runtime.writers import Entry
from xception_flax.training import metrics

COLUMNS = 3
COLOURS = {None: '#9aa5b1', 'live': '#d9822b', 'averaged': '#1f6fb2'}


def draw(entries: list[Entry], path: paths.Path, title: str) -> None:
    """Draws metrics over steps, from `metrics.jsonl`: of training batches, and of all weights.

    Needs matplotlib (extra `[train]`).
    """
    from matplotlib.figure import Figure

    series = dict.fromkeys((entry['split'], entry.get('weights')) for entry in entries)
    present = {name for entry in entries for name in entry}
    shown = [m for m in metrics.METRICS if m.drawn and m.name in present]
    shown.sort(key=lambda metric: metric.name != 'loss')  # the loss first
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout='constrained')
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, metric in zip(grid.flat, shown, strict=False):
        for split, weights in series:
            chosen = [e for e in entries if (e['split'], e.get('weights')) == (split, weights)]
            # Values that are not finite were written as strings.
            points = [
                (e['step'], e[metric.name])
                for e in chosen
                if isinstance(e.get(metric.name), int | float)
            ]
            if points:
                axes.plot(*zip(*points, strict=True), **_look(split, weights))
        scale = 'log' if metric.log_scale else 'linear'
        axes.set(xlabel='step', ylabel=metric.label, yscale=scale)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, dpi=120)
    paths.write(path, image.getvalue())


def _look(split: str, weights: str | None) -> dict[str, Any]:
    if weights is None:
        return {'label': f'{split}, batches', 'color': COLOURS[None], 'linewidth': 1}
    return {'label': f'{split}, {weights} weights', 'color': COLOURS[weights], 'marker': '.'}
