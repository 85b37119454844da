"""Reads the pictures of a source, those that can be read."""

import threading

import numpy as np
from absl import logging

from xception_flax.data import pictures
from xception_flax.data.sources.base import Record, Source, check_label
from xception_flax.runtime.errors import UserError


class Reader:
    """Decodes a source's pictures, from any number of threads.

    A picture that cannot be read is logged by its name, once, and counted. When they are too many,
    reading ends.

    Attributes:
      source: the source.
      unreadable: numbers of the records that could not be read so far.
    """

    def __init__(self, source: Source, max_share: float, hosts: int = 1):
        """Reads from `source`, of which no more than `max_share` may be unreadable.

        Args:
          source: the source.
          max_share: the share, of 1.
          hosts: how many processes read it; each counts in its own part.
        """
        self.source, self.max_share, self.hosts = source, max_share, hosts
        self.unreadable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[np.ndarray, Record] | None:
        """The picture, `[H, W, 3]` uint8, and its record; None if it cannot be read.

        Raises:
          UserError: more pictures than may be are unreadable, or the label is none of the classes.
        """
        try:
            return read(self.source, index)
        except pictures.BadPictureError as error:
            self._count(index, str(error))
            return None

    def read_or_next(self, index: int) -> tuple[np.ndarray, Record]:
        """Like `read`, but takes the first record after it that can be read."""
        for offset in range(len(self)):
            if found := self.read((index + offset) % len(self)):
                return found
        raise UserError(f'none of the {len(self)} pictures can be read')

    def _count(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.unreadable:
                return
            self.unreadable.add(index)
            count = len(self.unreadable)
        logging.warning('%s cannot be read: %s', self.source.name(index), reason)
        if count > self.max_share * len(self) / self.hosts:
            raise UserError(
                f'{count} of {len(self)} pictures cannot be read, more than config.max_unreadable='
                f'{self.max_share} allows; the last is {self.source.name(index)} ({reason}). '
                'List all of them with python -m xception_flax.data.check'
            )


def read(source: Source, index: int) -> tuple[np.ndarray, Record]:
    """Reads and decodes one picture.

    Returns:
      The picture, `[H, W, 3]` uint8, and its record.

    Raises:
      BadPictureError: it cannot be read.
      UserError: the label is none of the classes.
    """
    try:
        record = source[index]
    except OSError as error:  # a dangling link, a sector that is gone
        raise pictures.BadPictureError(str(error)) from error
    check_label(source, index, record)
    return pictures.decode(record['picture']), record
