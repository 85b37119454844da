"""Reads the images of a source, and counts those that cannot be read."""

import contextlib
import functools

import numpy as np
from absl import logging

from xception_flax.base.errors import UserError
from xception_flax.data import decoding
from xception_flax.data.sources.base import Record, Source, check_label

Unreadable = list[tuple[int, str]]  # number of a record, and why it cannot be read


class Reader:
    """Decodes the images of a source, from any number of threads.

    Unreadable images are noted where they are read, which may be another process, and counted where
    the batches arrive. Each is logged by its name, once; too many of them are an error.

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

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def blank_label(self) -> np.ndarray:
        """A label of zeros in the shape of the source's."""
        for index in range(len(self)):
            with contextlib.suppress(OSError):
                return np.zeros_like(self.source[index]['label'], np.int32)
        raise UserError(f'none of the {len(self)} images can be read')

    @property
    def allowed(self) -> float:
        """How many images may be unreadable."""
        return self.max_unreadable * len(self) / self.processes

    def read(self, index: int, unreadable: Unreadable) -> tuple[np.ndarray, Record] | None:
        """The image, `[H, W, 3]` uint8, and its record; None if it cannot be read.

        Args:
          index: number of the record.
          unreadable: gets the number and the reason if it cannot be read.

        Raises:
          UserError: the label is not a class.
        """
        try:
            return read(self.source, index, self.max_megapixels)
        except decoding.BadImageError as error:
            unreadable.append((index, str(error)))
            return None

    def read_or_next(self, index: int, unreadable: Unreadable) -> tuple[np.ndarray, Record]:
        """Like `read`; an unreadable image is replaced by the next one that is readable.

        Raises:
          UserError: too many in a row are unreadable, or the label is not a class.
        """
        found: Unreadable = []
        for offset in range(len(self)):
            if image := self.read((index + offset) % len(self), found):
                unreadable += found
                return image
            if len(found) > self.allowed:
                break
        self.count(found)
        raise UserError(f'none of the {len(self)} images can be read')

    def count(self, unreadable: Unreadable) -> None:
        """Logs and counts the images that are new to it.

        Raises:
          UserError: there are too many.
        """
        for index, reason in unreadable:
            if index in self.unreadable:
                continue
            self.unreadable.add(index)
            logging.warning('%s cannot be read: %s', self.source.name(index), reason)
            if len(self.unreadable) > self.allowed:
                raise UserError(
                    f'{len(self.unreadable)} of {len(self)} images cannot be read, more than '
                    f'config.max_unreadable={self.max_unreadable} allows; the last is '
                    f'{self.source.name(index)} ({reason}). List all of them with python -m '
                    'xception_flax.check'
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
