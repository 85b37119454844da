"""Images in Parquet files, as the Hugging Face hub has them; for reading in order.

A row group is decompressed as a whole, so reading at random positions is slow:
`xception_flax.prepare` writes an ArrayRecord of them.
"""

import bisect
import contextlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.data.sources.base import Record

SHARD = re.compile(r'(.+?)-\d+-of-\d+(-[0-9a-f]+)?$')  # train-00000-of-00294-1359597a978b


class ParquetSource:
    """The rows of several files, one image and one class each; -1 where a row has no class."""

    def __init__(self, paths: Sequence[str]):
        """Opens the files.

        Raises:
          UserError: a file is damaged, or has not one column of images and one of classes.
        """
        self.paths = paths
        with _errors(paths[0]):
            self.image, self.label, self.class_names = _columns(paths[0])
        self._groups: list[tuple[int, int]] = []  # file and group, by number
        lengths: list[int] = []
        self.names: list[str] = []
        labels: list[int] = []
        for number, path in enumerate(paths):
            with _errors(path):
                metadata = _open(path).metadata
                groups = range(metadata.num_row_groups)
                self._groups += [(number, group) for group in groups]
                lengths += [metadata.row_group(group).num_rows for group in groups]
                names, found = self._names_and_labels(path)
            self.names += names
            labels += found
        self.labels = np.array(labels, np.int64)
        self._starts = [0, *itertools.accumulate(lengths)]
        self._current: tuple[int, list[dict[str, Any] | None]] = -1, []
        self.num_classes = len(self.class_names) or int(self.labels.max(initial=-1)) + 1

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        group = bisect.bisect_right(self._starts, index) - 1
        if self._current[0] != group:
            file, number = self._groups[group]
            with _errors(self.paths[file]):
                table = _open(self.paths[file]).read_row_group(number, [self.image])
            self._current = group, table.column(0).to_pylist()
        image = self._current[1][index - self._starts[group]]
        if not image or image['bytes'] is None:
            raise OSError('the file does not hold the image')
        return Record(image=image['bytes'], label=int(self.labels[index]))

    def name(self, index: int) -> str:
        """The name of the image's own file, or its number."""
        return self.names[index] or f'{self.paths[0]}[{index}]'

    def _names_and_labels(self, path: str) -> tuple[list[str], list[int]]:
        file = _open(path)
        has_names = file.schema_arrow.field(self.image).type.get_field_index('path') >= 0
        columns = [f'{self.image}.path'] * has_names + [self.label]
        table = file.read(columns)
        labels = [-1 if label is None else label for label in table.column(self.label).to_pylist()]
        if not has_names:
            return [''] * len(labels), labels
        rows = table.column(self.image).to_pylist()
        return [(row or {}).get('path') or '' for row in rows], labels


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turns what a damaged or unlike file raises into an error for people."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f'{path} is damaged, or unlike the others: {error}') from error


def _open(path: str) -> Any:
    with extras.needed('parquet', path):
        import pyarrow.parquet
    return pyarrow.parquet.ParquetFile(path)


def _columns(path: str) -> tuple[str, str, list[str]]:
    """The columns of images and of classes, and the names of the classes if they are told."""
    schema = _open(path).schema_arrow
    described = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    features = described.get('info', {}).get('features', {})
    images = [field.name for field in schema if _is_image(field.type)]
    integers = [f.name for f in schema if re.fullmatch('u?int(8|16|32|64)', str(f.type))]
    classes = [name for name in integers if features.get(name, {}).get('_type') == 'ClassLabel']
    image = _one(path, 'images (a struct with bytes)', images, 'image', schema.names)
    label = _one(path, 'classes (integers)', classes or integers, 'label', schema.names)
    return image, label, list(features.get(label, {}).get('names', ()))


def _one(path: str, what: str, found: list[str], usual: str, columns: list[str]) -> str:
    if usual in found:
        return usual
    if len(found) != 1:
        several = f'several columns of {what}: {found}' if found else f'no column of {what}'
        raise UserError(f'{path} has {several}; it has {columns}')
    return found[0]


def _is_image(kind: Any) -> bool:
    return str(kind).startswith('struct') and kind.get_field_index('bytes') >= 0


def by_split(paths: Sequence[pathlib.Path]) -> dict[str, list[str]]:
    """Parquet files by their split: train-00000-of-00294.parquet, or train/0000.parquet.

    Raises:
      UserError: the files of a split lie in several folders, as those of several data sets do.
    """
    found: dict[str, dict[pathlib.Path, list[pathlib.Path]]] = {}
    for path in paths:
        shard = SHARD.match(path.stem)
        split, folder = (shard[1] if shard else path.stem), path.parent
        if path.stem.isdigit():
            split, folder = path.parent.name, path.parent.parent
        found.setdefault(split, {}).setdefault(folder, []).append(path)
    for split, folders in found.items():
        if len(folders) > 1:
            raise UserError(
                f'there are Parquet files of {split} in {len(folders)} folders; give one of them: '
                f'{", ".join(sorted(map(str, folders)))}'
            )
    return {s: sorted(str(p) for group in f.values() for p in group) for s, f in found.items()}
