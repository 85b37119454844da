"""Looks at every image of a split: what cannot be read, classes, sizes, and what is there twice."""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.data import decoding, protocols
from xception_flax.data.reader import read
from xception_flax.data.sources.base import Source

CHUNK = 1024  # a pool takes all its tasks at once


@dataclasses.dataclass(frozen=True)
class Look:
    """What was seen of one image.

    Attributes:
      problem: what is wrong with it, or ''; then the others are not known.
      shape: height and width.
      digest: of its file, or of its pixels where there is no file.
      classes: its classes.
    """

    problem: str
    shape: tuple[int, int] = (0, 0)
    digest: bytes = b''
    classes: tuple[int, ...] = ()


def look(source: Source, config: ConfigDict) -> Iterator[Look]:
    """Looks at all images of a source, in order, by `config.loader_threads` threads."""

    def one(index: int) -> Look:
        try:
            image, record = read(source, index, config.max_megapixels)
        except UserError as error:
            return Look(str(error))
        except decoding.BadImageError as error:
            return Look(f'{source.name(index)} cannot be read: {error}')
        stored, label = record['image'], np.asarray(record['label'])
        data = stored if isinstance(stored, bytes) else stored.tobytes()
        classes = (int(label),) if label.ndim == 0 else tuple(np.flatnonzero(label).tolist())
        height, width = image.shape[:2]
        return Look('', (height, width), hashlib.blake2b(data, digest_size=16).digest(), classes)

    with concurrent.futures.ThreadPoolExecutor(config.loader_threads) as pool:
        for start in range(0, len(source), CHUNK):
            yield from pool.map(one, range(start, min(start + CHUNK, len(source))))


class Survey:
    """What was seen of one split.

    Attributes:
      unreadable: number of images that cannot be read.
      digests: the number of the first record with a file, by the file's digest.
    """

    def __init__(self, title: str, source: Source):
        """Begins a survey of `source`, which `title` names in messages."""
        self.title, self.source = title, source
        self.unreadable = self._number = 0
        self.digests: dict[bytes, int] = {}
        self._twice: list[tuple[int, int]] = []
        self._counts = np.zeros(source.num_classes, int)
        self._sizes: dict[tuple[int, int], int] = {}  # the first record of each size

    def add(self, seen: Look) -> None:
        """Takes the next image."""
        number, self._number = self._number, self._number + 1
        if seen.problem:
            self.unreadable += 1
            return
        first = self.digests.setdefault(seen.digest, number)
        if first != number:
            self._twice.append((first, number))
        self._counts[list(seen.classes)] += 1
        self._sizes.setdefault(seen.shape, number)

    def lines(self, config: ConfigDict) -> list[str]:
        """What there is to say of the split."""
        found = [f'{self.title}: {len(self.source):,} images, {self.unreadable} unreadable']
        if not self._sizes:
            return found
        few, many = self._counts.argmin(), self._counts.argmax()
        found.append(
            f'  {len(self._counts):,} classes, of {self._counts[few]:,} ({self._class(few)}) to '
            f'{self._counts[many]:,} images ({self._class(many)})'
        )
        (height, width), number = min(self._sizes.items(), key=lambda item: min(item[0]))
        heights, widths = zip(*self._sizes, strict=True)
        found.append(
            f'  {min(heights)} to {max(heights)} pixels high, {min(widths)} to {max(widths)} wide'
        )
        factor = config.image_size / protocols.setting(config, 'crop_fraction') / min(height, width)
        if factor > 1:
            found.append(
                f'  the smallest, {self.source.name(number)}, has {width} x {height} pixels; '
                f'evaluation enlarges it {factor:.1f} times'
            )
        if self._twice:
            first, second = (self.source.name(i) for i in self._twice[0])
            found.append(f'  {len(self._twice):,} are there twice, such as {second} ({first})')
        return found

    def shared(self, other: 'Survey') -> list[str]:
        """A line about images that are in another split, too."""
        both = [digest for digest in self.digests if digest in other.digests]
        if not both:
            return []
        first = self.source.name(self.digests[both[0]])
        second = other.source.name(other.digests[both[0]])
        return [
            f'{len(both):,} images of {self.title} are in {other.title}, too, such as {first} '
            f'({second})'
        ]

    def _class(self, number: np.integer) -> str:
        names = self.source.class_names
        return repr(names[int(number)]) if names else f'class {number}'
