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

    def __init__(self, source: Source, max_share: float):
        """Reads from `source`, of which no more than `max_share` may be unreadable."""
        self.source, self.max_share = source, max_share
        self.unreadable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[np.ndarray, Record] | None:
        """The picture, `[H, W, 3]` uint8, and its record; None if it cannot be read.

        Raises:
          UserError: more pictures than may be are unreadable, or the label is none of the classes.
        """
        record = self.source[index]
        check_label(self.source, index, record)
        try:
            return pictures.decode(record['picture']), record
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
        if count > self.max_share * len(self):
            raise UserError(
                f'{count} of {len(self)} pictures cannot be read, more than config.max_unreadable='
                f'{self.max_share} allows; the last is {self.source.name(index)} ({reason}). '
                'List all of them with python -m xception_flax.data.check'
            )
