"""A source without the records of a list, such as ImageNet's blacklist."""

import concurrent.futures
import re

import numpy as np

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data.sources.base import Record, Source


class RemainingSource:
    """The records of a source that are not excluded, in its order."""

    def __init__(self, source: Source, kept: np.ndarray):
        self.source, self.kept = source, kept
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.kept[index])]

    def name(self, index: int) -> str:
        """Name of the record in the source."""
        return self.source.name(int(self.kept[index]))


def exclude(source: Source, file: str, threads: int) -> tuple[Source, list[str]]:
    """Leaves out the records that a file lists, one per line; reads the names of all records.

    A line is a file name, with or without folders, or the number at its end: 36 means
    ILSVRC2012_val_00000036.JPEG. So ImageNet's own list of validation images works as it is
    (ILSVRC2014_clsloc_validation_blacklist.txt in the devkit). If images have no file names, a
    number is the index of a record, from 0.

    Args:
      source: a split.
      file: path of the list.
      threads: number of threads that read.

    Returns:
      The remaining source, and the lines that match no record.

    Raises:
      UserError: the file cannot be read, or no record would remain.
    """
    path = paths.path(file)
    try:
        with paths.errors(path):
            text = path.read_text('utf-8')
        lines = dict.fromkeys(line.strip() for line in text.splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f'--exclude={path} cannot be read: {error}') from error
    lines.pop('', None)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        names = list(pool.map(source.name, range(len(source))))
    listed = [lines.keys() & _aliases(name) for name in names]
    kept = np.array([index for index, found in enumerate(listed) if not found], int)
    if not len(kept):
        raise UserError(f'--exclude={path} leaves none of the {len(names)} images')
    matched = set().union(*listed)
    return RemainingSource(source, kept), [line for line in lines if line not in matched]


def _aliases(name: str) -> set[str]:
    """The names of a record in a list: its path from any folder on, and its number."""
    parts = name.rpartition(' ')[2].split('/')
    paths = {'/'.join(parts[start:]) for start in range(len(parts))}
    number = re.search(r'(\d+)(\.\w+|\])?$', name)
    return paths | ({number[1], str(int(number[1]))} if number else set())
