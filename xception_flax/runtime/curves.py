"""The training curves of a run as a picture."""

import pathlib
from typing import Any

from matplotlib.figure import Figure

from xception_flax.runtime.writers import Record

METRICS = {'loss': 'loss', 'top1': 'top-1 accuracy'}
COLOURS = {None: '#9aa5b1', 'live': '#d9822b', 'averaged': '#1f6fb2'}


def draw(records: list[Record], path: pathlib.Path, title: str) -> None:
    """Draws loss and top-1 over steps: of training batches, and of each kind of weights.

    Args:
      records: of `metrics.jsonl`.
      path: the PNG to write.
      title: what to write above.
    """
    series = dict.fromkeys((record['split'], record.get('weights')) for record in records)
    figure = Figure(figsize=(10, 4), layout='constrained')
    figure.suptitle(title)
    for axes, (metric, label) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        for split, weights in series:
            chosen = [r for r in records if (r['split'], r.get('weights')) == (split, weights)]
            # What is not finite was written as a string.
            points = [(r['step'], r[metric]) for r in chosen if not isinstance(r[metric], str)]
            if points:
                axes.plot(*zip(*points, strict=True), **_look(split, weights))
        axes.set(xlabel='step', ylabel=label, yscale='log' if metric == 'loss' else 'linear')
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _look(split: str, weights: str | None) -> dict[str, Any]:
    if weights is None:
        return {'label': f'{split}, batches', 'color': COLOURS[None], 'linewidth': 1}
    return {'label': f'{split}, {weights} weights', 'color': COLOURS[weights], 'marker': '.'}
