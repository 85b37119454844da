"""The training curves of a run as a picture."""

import pathlib
from collections.abc import Callable

from matplotlib.figure import Figure

from xception_flax.runtime.writers import Record


def draw(records: list[Record], path: pathlib.Path, title: str) -> None:
    """Draws loss and top-1 over steps.

    Args:
      records: of `metrics.jsonl`.
      path: the PNG to write.
      title: what to write above.
    """
    figure = Figure(figsize=(10, 4), layout='constrained')
    figure.suptitle(title)
    for axes, metric in zip(figure.subplots(1, 2), ('loss', 'top1'), strict=True):
        for label, of_series, style in _series(records):
            points = [(r['step'], r[metric]) for r in records if of_series(r) and metric in r]
            points = [point for point in points if not isinstance(point[1], str)]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set(xlabel='step', ylabel={'loss': 'loss', 'top1': 'top-1 accuracy'}[metric])
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _series(records: list[Record]) -> list[tuple[str, Callable[[Record], bool], dict]]:
    kinds = dict.fromkeys((r['split'], r.get('weights')) for r in records)
    series = []
    for split, weights in kinds:
        label = f'{split}, {weights} weights' if weights else f'{split}, batches'
        style = {'color': '#9aa5b1', 'linewidth': 1} if not weights else {'marker': '.'}
        if weights:
            style['color'] = {'live': '#d9822b', 'averaged': '#1f6fb2'}[weights]

        def of_series(record: Record, kind=(split, weights)) -> bool:
            return (record['split'], record.get('weights')) == kind

        series.append((label, of_series, style))
    return series
