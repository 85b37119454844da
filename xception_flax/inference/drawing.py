"""Draws images with their labels."""

import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xception_flax.inference.prediction import Prediction
from xception_flax.inference.preprocessing import Image, decode, named

COLUMNS = 4
BAR = '#1f6fb2'
WIDTH, IMAGE, ROW, TITLE = 3.4, 2.3, 0.26, 0.5  # inches: a column's width; heights
PIXELS = 800  # longer side of a drawn image, at most
LETTERS = 34  # of a name, at most


def draw(images: Image | Iterable[Image], predictions: Sequence[Prediction]) -> Figure:
    """Draws images with their labels below them, several in a grid.

    Args:
      images: the images given to `predict`.
      predictions: its results.

    Returns:
      A figure, for `figure.savefig('image.png')` or as the last line of a notebook cell.

    Raises:
      UserError: an image cannot be read.
    """
    items = named(images)
    columns = min(COLUMNS, math.ceil(math.sqrt(len(items))))
    rows = math.ceil(len(items) / columns)
    labels = max(len(prediction.labels) for prediction in predictions)
    figure = Figure(
        figsize=(columns * WIDTH, rows * (IMAGE + labels * ROW + TITLE)),
        dpi=120,
        layout='constrained',
    )
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.16)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, height_ratios=[IMAGE, labels * ROW] * rows
    )
    for axes in grid.flat:
        axes.set_axis_off()
    above, below = grid[::2].flat, grid[1::2].flat
    for (image, name), prediction, over, under in zip(
        items, predictions, above, below, strict=False
    ):
        over.imshow(_small(decode(image, name)))
        over.set_anchor('S')
        title = _short(pathlib.Path(name).name)
        over.set_title(title, fontsize=8, color='#52606d', parse_math=False)
        _draw_labels(under, prediction, labels)
    return figure


def _draw_labels(axes: Axes, prediction: Prediction, rows: int) -> None:
    """Draws each label on a bar of the length of its probability, the best at the top."""
    axes.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5))
    for rank, label in enumerate(prediction.labels):
        axes.barh(rank, 1, 0.82, color='#f1f4f7')
        axes.barh(rank, label.probability, 0.82, color=BAR, alpha=0.4)
        style: dict[str, Any] = {'fontsize': 8, 'verticalalignment': 'center_baseline'}
        style['fontweight'] = 'normal' if rank else 'bold'
        axes.text(0.02, rank, _short(label.name), parse_math=False, **style)
        axes.text(0.98, rank, f'{label.probability:.1%}', horizontalalignment='right', **style)


def _small(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = PIXELS / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f'{text[: LETTERS - 1]}…'
