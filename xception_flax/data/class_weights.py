"""Weights of the classes in MAP@100."""

import csv
import json
import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError, nearest
from xception_flax.data.sources.base import Source


def load(config: ConfigDict, source: Source) -> np.ndarray:
    """The weight of each class of a source, `[C]` float32.

    Weights come from the file `config.dataset.class_weights`: JSON, {"cat": 2.5, ...}, or CSV
    without a header, one line `cat,2.5` per class. A class is given by name or by number, from 0.
    Classes that are not in the file weigh 0, as FastEval14k has 6,000 of JFT's 17,000. Without a
    file all weigh 1: the paper's weights, class frequencies on social media, are not public.

    Raises:
      UserError: the file cannot be read, or has an unknown class or an impossible weight.
    """
    weights = np.zeros(source.num_classes, np.float32)
    if not config.dataset.class_weights:
        return weights + 1
    path = pathlib.Path(config.dataset.class_weights).expanduser()
    numbers = {str(i): i for i in range(source.num_classes)}
    numbers |= {name: i for i, name in enumerate(source.class_names)}
    for name, weight in _read(path):
        if name not in numbers:
            raise UserError(f'{path}: there is no class {name!r}{nearest(name, numbers)}')
        try:
            weights[numbers[name]] = value = float(weight)
        except (TypeError, ValueError):
            value = -1.0
        if not 0 <= value < math.inf:
            raise UserError(f'{path}: {name!r} weighs {weight!r}; give a number, 0 or above')
    if not weights.any():
        raise UserError(f'{path}: all weights are 0; give at least one above 0')
    return weights


def _read(path: pathlib.Path) -> list[tuple[str, Any]]:
    """The pairs of class and weight in a file."""
    try:
        text = path.read_text(encoding='utf-8')
        if path.suffix.lower() == '.json':
            return [(str(name), weight) for name, weight in json.loads(text).items()]
        return [(name.strip(), weight) for name, weight in csv.reader(text.splitlines())]
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(
            f'config.dataset.class_weights: {path} cannot be read as JSON or CSV of classes and '
            f'weights: {error}'
        ) from error
