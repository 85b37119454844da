"""A source without the records of a list, such as ImageNet's blacklist."""

import concurrent.futures
import pathlib
import re

import numpy as np

from xception_flax.data.sources.base import Record, Source
from xception_flax.runtime.errors import UserError


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
        """What the source calls it."""
        return self.source.name(int(self.kept[index]))


def exclude(source: Source, path: pathlib.Path, threads: int) -> tuple[Source, list[str]]:
    """Leaves out the records that a file lists, one a line; reads the names of all.

    A line is a file name, with or without its folders, or the number that it ends in: 36 is
    ILSVRC2012_val_00000036.JPEG. So ImageNet's own list can be given as it is, the devkit's
    ILSVRC2014_clsloc_validation_blacklist.txt, which holds numbers of validation pictures.
    Where pictures have no file names, a number is the picture's place, from 0.

    Args:
      source: a split.
      path: the list.
      threads: how many read at once.

    Returns:
      What is left, and the lines that are of no record.

    Raises:
      UserError: there is no such file, or nothing would be left.
    """
    try:
        lines = dict.fromkeys(line.strip() for line in path.read_text('utf-8').splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f'--exclude={path} cannot be read: {error}') from error
    lines.pop('', None)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        names = list(pool.map(source.name, range(len(source))))
    listed = [lines.keys() & _aliases(name) for name in names]
    kept = np.array([index for index, found in enumerate(listed) if not found], int)
    if not len(kept):
        raise UserError(f'--exclude={path} leaves none of the {len(names)} pictures')
    matched = set().union(*listed)
    return RemainingSource(source, kept), [line for line in lines if line not in matched]


def _aliases(name: str) -> set[str]:
    """What a list may call the record: its path from any folder on, or its number."""
    parts = name.rpartition(' ')[2].split('/')
    paths = {'/'.join(parts[start:]) for start in range(len(parts))}
    number = re.search(r'(\d+)(\.\w+|\])?$', name)
    return paths | ({number[1], str(int(number[1]))} if number else set())
