"""Reads the images of a source, and counts those that cannot be read."""

import threading

import numpy as np
from absl import logging

from xception_flax.base.errors import UserError
from xception_flax.data import decoding
from xception_flax.data.sources.base import Record, Source, check_label


class Reader:
    """Decodes the images of a source, from any number of threads.

    An unreadable image is logged by its name, once, and counted; too many of them are an error.

    Attributes:
      source: the source.
      unreadable: numbers of the unreadable records so far.
    """

    def __init__(
        self,
        source: Source,
        max_unreadable: float,
        processes: int = 1,
        max_megapixels: float = decoding.MAX_MEGAPIXELS,
    ):
        """Reads from `source`, of which a fraction of `max_unreadable` may be unreadable.

        Each of `processes` counts in its own part. Images of more than `max_megapixels` are
        unreadable.
        """
        self.source, self.max_unreadable, self.processes = source, max_unreadable, processes
        self.max_megapixels = max_megapixels
        self.unreadable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[np.ndarray, Record] | None:
        """The image, `[H, W, 3]` uint8, and its record; None if it cannot be read.

        Raises:
          UserError: too many images are unreadable, or the label is not a class.
        """
        try:
            return read(self.source, index, self.max_megapixels)
        except decoding.BadImageError as error:
            self._count(index, str(error))
            return None

    def read_or_next(self, index: int) -> tuple[np.ndarray, Record]:
        """Like `read`; an unreadable image is replaced by the next one that is readable."""
        for offset in range(len(self)):
            if found := self.read((index + offset) % len(self)):
                return found
        raise UserError(f'none of the {len(self)} images can be read')

    def _count(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.unreadable:
                return
            self.unreadable.add(index)
            count = len(self.unreadable)
        logging.warning('%s cannot be read: %s', self.source.name(index), reason)
        if count > self.max_unreadable * len(self) / self.processes:
            raise UserError(
                f'{count} of {len(self)} images cannot be read, more than config.max_unreadable='
                f'{self.max_unreadable} allows; the last is {self.source.name(index)} ({reason}). '
                'List all of them with python -m xception_flax.check'
            )


def read(
    source: Source, index: int, max_megapixels: float = decoding.MAX_MEGAPIXELS
) -> tuple[np.ndarray, Record]:
    """Reads and decodes one image.

    Returns:
      The image, `[H, W, 3]` uint8, and its record.

    Raises:
      BadImageError: the image cannot be read.
      UserError: the label is not a class.
    """
    try:
        record = source[index]
    except OSError as error:  # a dangling link, a bad sector
        raise decoding.BadImageError(str(error)) from error
    check_label(source, index, record)
    return decoding.decode(record['image'], max_megapixels), record
