"""Weights of the classes, in MAP@100 and in the loss."""

import csv
import json
import math
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError, nearest
from xception_flax.data.sources.base import Source


def load(config: ConfigDict, source: Source) -> np.ndarray:
    """The weight of each class of a source in MAP@100, `[C]` float32.

    Weights come from the file `config.dataset.class_weights`. Classes that are not in it weigh 0,
    as FastEval14k has 6,000 of JFT's 17,000. Without a file all weigh 1: the paper's weights, class
    frequencies on social media, are not public.

    Raises:
      UserError: the file cannot be read, or has an unknown class or an impossible weight.
    """
    if not config.dataset.class_weights:
        return np.ones(source.num_classes, np.float32)
    return read(config.dataset.class_weights, source)


def of_loss(config: ConfigDict, source: Source) -> np.ndarray | None:
    """The weight of each class in the training loss, `[C]` float32; None if all are equal.

    With 'balanced' an image weighs N / (C * n) if n of the N images are of its class, as in
    scikit-learn: all classes weigh the same, and the mean over the images is 1.

    Args:
      config: the run's config, with `config.loss_weights`.
      source: the training split.

    Raises:
      UserError: the file cannot be read, or the source does not know its labels.
    """
    if not config.loss_weights:
        return None
    if config.loss_weights != 'balanced':
        return read(config.loss_weights, source)
    labels = getattr(source, 'labels', None)
    if labels is None:
        raise UserError(
            "config.loss_weights='balanced' needs the number of images of each class, which "
            f'config.dataset.source={config.dataset.source!r} does not know; give a file of weights'
        )
    counts = np.bincount(np.asarray(labels), minlength=source.num_classes)
    return (len(labels) / (source.num_classes * np.maximum(counts, 1))).astype(np.float32)


def read(file: str, source: Source) -> np.ndarray:
    """Weights of the classes of a source, `[C]` float32, from a file.

    It is JSON, {"cat": 2.5, ...}, or CSV without a header, one line `cat,2.5` per class. A class is
    given by name or by number, from 0. Classes that are not in the file weigh 0.

    Raises:
      UserError: the file cannot be read, or has an unknown class or an impossible weight.
    """
    weights = np.zeros(source.num_classes, np.float32)
    path = paths.path(file)
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


def _read(path: paths.Path) -> list[tuple[str, Any]]:
    """The pairs of class and weight in a file."""
    try:
        with paths.errors(path):
            text = path.read_text(encoding='utf-8')
        if path.suffix.lower() == '.json':
            return [(str(name), weight) for name, weight in json.loads(text).items()]
        return [(name.strip(), weight) for name, weight in csv.reader(text.splitlines())]
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(
            f'class weights: {path} cannot be read as JSON or CSV of classes and weights: {error}'
        ) from error
