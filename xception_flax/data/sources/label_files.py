"""Files that list images with their labels."""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data.decoding import SUFFIXES

Rows = list[tuple[str, list[str]]]  # an image, and its labels


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images with labels.

    Attributes:
      files: paths of the images, sorted.
      labels: for each a class, or `[C]` of 0 and 1 where the loss is sigmoid.
      class_names: all classes, by number if all are numbers, else by name.
    """

    files: list[str]
    labels: list[int | np.ndarray]
    class_names: list[str]


def read(config: ConfigDict, root: pathlib.Path, split: str, images: Sequence[str]) -> Labelled:
    """Reads `config.dataset.labels`, a path in which {split} stands for the split.

    Each line has an image and its label, separated by a comma, semicolon, tab or space; a first
    line that names no image is a header. Images are paths below `root`, also without their ending.
    Where the loss is sigmoid, an image has any number of labels: separated by `|` or spaces, or one
    column of 0 and 1 for each class, which the header names.

    Args:
      config: the run's config.
      root: folder of the images.
      split: the split; the classes are those of all splits together.
      images: paths of all images, relative to `root`.

    Raises:
      UserError: a file cannot be read, or names images that are not there.
    """
    several = config.loss == 'sigmoid'
    dataset = config.dataset
    splits = dict.fromkeys((dataset.train_split, dataset.eval_split, split))
    paths = dict.fromkeys(_path(config, root, name) for name in splits)
    known = _names(images)
    rows = {path: _rows(path, root, known, several) for path in paths}
    found = {label for table in rows.values() for _, labels in table for label in labels}
    names = sorted(found, key=int if all(map(str.isdecimal, found)) else None)
    numbers = {name: number for number, name in enumerate(names)}
    of_image: dict[str, list[int]] = {}
    for image, labels in rows[_path(config, root, split)]:
        of_image.setdefault(known[image], []).extend(numbers[label] for label in labels)
    files = sorted(of_image)
    if several:
        hot = [np.zeros(len(names), np.int32) for _ in files]
        for label, file in zip(hot, files, strict=True):
            label[of_image[file]] = 1
        return Labelled(files, list(hot), names)
    for file, chosen in of_image.items():
        if len(set(chosen)) != 1:
            raise UserError(
                f'{_path(config, root, split)}: {file} has {len(set(chosen))} labels; several per '
                'image need --config.loss=sigmoid'
            )
    return Labelled(files, [of_image[file][0] for file in files], names)


def _path(config: ConfigDict, root: pathlib.Path, split: str) -> paths.Path:
    """The file of a split: as given, or else in the folder of the images."""
    path = paths.path(config.dataset.labels.replace('{split}', split))
    return path if paths.in_bucket(path) or path.exists() else root / path


def _names(images: Sequence[str]) -> dict[str, str]:
    """The images by what a table may call them: with and without their ending."""
    short: dict[str, list[str]] = {}
    for image in images:
        short.setdefault(image.rpartition('.')[0], []).append(image)
    unique = {name: found[0] for name, found in short.items() if len(found) == 1}
    return unique | {image: image for image in images}


def _rows(path: paths.Path, root: pathlib.Path, known: dict[str, str], several: bool) -> Rows:
    """The lines of a file."""
    try:
        with paths.errors(path):
            text = path.read_text(encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        raise UserError(f'config.dataset.labels: {path} cannot be read: {error}') from error
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = next((mark for mark in ',;\t' if lines and mark in lines[0]), ' ')
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise UserError(f'config.dataset.labels: {path} is no table: {error}') from error
    for row in table:
        row[0] = row[0].removeprefix(f'{root}/').removeprefix('./')
    header = table.pop(0) if table and _is_header(table[0], known) else []
    missing = [row[0] for row in table if row[0] not in known]
    if missing or not table:
        what = f'such as {missing[0]!r}' if missing else 'and no others'
        raise UserError(
            f'config.dataset.labels: {path} names {len(missing):,} images that are not in the '
            f'folder, {what}'
        )
    short = [row[0] for row in table if len(row) < 2 or not (several or row[1])]
    if short:
        raise UserError(f'config.dataset.labels: {path} has no label for {short[0]!r}')
    if header and len(header) > 2 and all(cell in ('0', '1') for row in table for cell in row[1:]):
        return [(row[0], _hot(header, row)) for row in table]
    if not several:
        return [(row[0], [' '.join(row[1:]) if delimiter == ' ' else row[1]]) for row in table]
    return [(row[0], ' '.join(row[1:]).replace('|', ' ').split()) for row in table]


def _is_header(row: list[str], known: dict[str, str]) -> bool:
    return row[0] not in known and not row[0].lower().endswith(SUFFIXES)


def _hot(header: list[str], row: list[str]) -> list[str]:
    """The names of the columns with a 1."""
    return [name for name, cell in zip(header[1:], row[1:], strict=False) if cell == '1']
