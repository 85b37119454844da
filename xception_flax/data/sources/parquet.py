"""Images in Parquet files, as the Hugging Face hub has them; for reading in order.

A row group is decompressed as a whole, so reading at random positions is slow:
`xception_flax.prepare` writes an ArrayRecord of them.
"""

import bisect
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xception_flax.base.errors import UserError
from xception_flax.data.sources.base import Record


class ParquetSource:
    """The rows of several files, one image and one class each."""

    def __init__(self, paths: Sequence[str]):
        """Opens the files.

        Raises:
          UserError: a file is damaged, or has no column of images or of classes.
        """
        self.paths = paths
        self.image, self.label, names = _columns(paths[0])
        self._groups: list[tuple[int, int]] = []  # file and group, by number
        lengths = []
        for number, path in enumerate(paths):
            metadata = _open(path).metadata
            self._groups += [(number, group) for group in range(metadata.num_row_groups)]
            lengths += [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(lengths)]
        self._current: tuple[int, list[dict[str, Any]]] = -1, []
        self.names, self.labels = self._names_and_labels()
        self.class_names = names
        self.num_classes = len(names) or int(self.labels.max(initial=-1)) + 1

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        group = bisect.bisect_right(self._starts, index) - 1
        if self._current[0] != group:
            file, number = self._groups[group]
            table = _open(self.paths[file]).read_row_group(number, [self.image])
            self._current = group, table.column(0).to_pylist()
        data = self._current[1][index - self._starts[group]]['bytes']
        if data is None:
            raise OSError('the image lies outside the file')
        return Record(image=data, label=int(self.labels[index]))

    def name(self, index: int) -> str:
        """The name of the image's own file, or its number."""
        return self.names[index] or f'{self.paths[0]}[{index}]'

    def _names_and_labels(self) -> tuple[list[str], np.ndarray]:
        names: list[str] = []
        labels: list[int] = []
        for path in self.paths:
            table = _open(path).read([f'{self.image}.path', self.label])
            names += (row.get('path') or '' for row in table.column(self.image).to_pylist())
            found = table.column(self.label).to_pylist()
            labels += (-1 if label is None else label for label in found)
        return names, np.array(labels, np.int32)


def _open(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError("Parquet files need pyarrow: pip install -e '.[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'{path} is damaged, or no Parquet file: {error}') from error


def _columns(path: str) -> tuple[str, str, list[str]]:
    """The columns of images and of classes, and the names of the classes if they are told."""
    schema = _open(path).schema_arrow
    described = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    features = described.get('info', {}).get('features', {})
    images = [field.name for field in schema if _is_image(field.type)]
    classes = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get('_type') == 'ClassLabel'
    ]
    classes += [field.name for field in schema if re.fullmatch('int(8|16|32|64)', str(field.type))]
    if not images or not classes:
        raise UserError(
            f'{path} has no column of images (struct of bytes and path) and of classes (integers), '
            f'but {schema.names}'
        )
    return images[0], classes[0], list(features.get(classes[0], {}).get('names', ()))


def _is_image(kind: Any) -> bool:
    return str(kind).startswith('struct') and kind.get_field_index('bytes') >= 0


def by_split(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Parquet files by the split that their names tell, such as train-00000-of-00294.parquet."""
    split = {name: re.split(r'[-_.]\d', name.rpartition('/')[2])[0] for name in names}
    for one in dict.fromkeys(split.values()):
        yield one.removesuffix('.parquet'), sorted(n for n in names if split[n] == one)
