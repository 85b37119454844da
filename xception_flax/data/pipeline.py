"""Batches for this host, from a source, by Grain.

Every example has one global index: position `i` of an endless sequence of shuffled epochs. Step `s`
takes the indices from `s * batch_size` on; each host takes its own stretch of every batch. What a
batch holds thus depends on the seed and the index alone, not on hosts, threads or restarts, and a
single number is enough to go on from.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from xception_flax.data import pictures
from xception_flax.data.sources import Source
from xception_flax.runtime.errors import UserError

Batch = dict[str, np.ndarray]


def training_batches(
    source: Source, config: ConfigDict, start: int, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """Endless batches of augmented pictures, shuffled anew in each epoch.

    Args:
      source: the training split.
      config: the run's config.
      start: the global index of the first example.
      host: number of this host.
      hosts: number of hosts; they divide the batch.

    Yields:
      'image' `[B, S, S, 3]` uint8 and 'label' `[B]` int32, with B this host's share of the batch.
    """
    examples = training_order(source, config.seed).random_map(_Training(config))
    share = HostShare(examples[start:], config.batch_size, host, hosts)
    return iter(_batched(share, config.batch_size // hosts, config.loader_threads))


def training_order(source: Source, seed: int) -> grain.MapDataset:
    """The endless sequence of indexed records that training walks along."""
    # Grain seeds epoch e with seed + e: neighbouring seeds would share their epochs.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    records = grain.MapDataset.source(_Indexed(source)).seed(spread)
    return records.shuffle().repeat()


def evaluation_batches(
    source: Source, config: ConfigDict, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """The whole split once, in order, its last batch filled up with blank pictures.

    Yields:
      'image' `[B, S, S, 3]` uint8, 'label' `[B]` int32 and 'mask' `[B]` float32: 0 for filling.
    """
    examples = grain.MapDataset.source(_Padded(source, config.batch_size)).map(_Evaluation(config))
    share = HostShare(examples, config.batch_size, host, hosts)
    return iter(_batched(share, config.batch_size // hosts, config.loader_threads))


class HostShare(grain.MapDataset):
    """One host's stretch of every global batch of the parent, one after the other."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, host: int, hosts: int):
        super().__init__(parent)
        self.batch_size, self.host, self.hosts = batch_size, host, hosts

    def __len__(self) -> int:
        return len(self._parent) // self.hosts

    def __getitem__(self, index: int) -> Any:
        batch, within = divmod(index, self.batch_size // self.hosts)
        start = batch * self.batch_size + self.host * (self.batch_size // self.hosts)
        return self._parent[start + within]


def _batched(share: grain.MapDataset, size: int, threads: int) -> grain.IterDataset:
    # Threads work on single pictures: a whole batch in flight for each would be too much memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * size, threads))
    return share.to_iter_dataset(options).batch(size)


class _Indexed:
    """A source whose records say which one they are."""

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Source, int]:
        return self.source, index


class _Padded(_Indexed):
    """A source that goes on to a multiple of the batch size."""

    def __init__(self, source: Source, batch_size: int):
        super().__init__(source)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size) * self.batch_size


class _Training(grain.transforms.RandomMap):
    def __init__(self, config: ConfigDict):
        self.config = config

    def random_map(self, element: tuple[Source, int], rng: np.random.Generator) -> dict[str, Any]:
        picture, label = _read(*element)
        picture = pictures.for_training(picture, self.config, rng)
        return {'image': picture, 'label': np.int32(label)}


class _Evaluation(grain.transforms.Map):
    def __init__(self, config: ConfigDict):
        self.config = config

    def map(self, element: tuple[Source, int]) -> dict[str, Any]:
        source, index = element
        if index >= len(source):
            blank = np.zeros((self.config.image_size,) * 2 + (3,), np.uint8)
            return {'image': blank, 'label': np.int32(0), 'mask': np.float32(0)}
        picture, label = _read(source, index)
        picture = pictures.for_evaluation(picture, self.config)
        return {'image': picture, 'label': np.int32(label), 'mask': np.float32(1)}


def _read(source: Source, index: int) -> tuple[np.ndarray, int]:
    record = source[index]
    try:
        return pictures.decode(record['picture']), record['label']
    except pictures.BadPictureError as error:
        raise UserError(f'{source.name(index)} cannot be read: {error}') from error
