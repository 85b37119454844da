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
from xception_flax.data.reader import Reader

Batch = dict[str, np.ndarray]


def training_batches(
    reader: Reader, config: ConfigDict, start: int, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """Endless batches of augmented pictures, shuffled anew in each epoch.

    A picture that cannot be read is replaced by the next in the source that can.

    Args:
      reader: of the training split.
      config: the run's config.
      start: the global index of the first example.
      host: number of this host.
      hosts: number of hosts; they divide the batch.

    Yields:
      'image' `[B, S, S, 3]` uint8 and 'label' `[B]` int32, with B this host's share of the batch.
    """
    examples = training_order(len(reader), config.seed).random_map(_Training(reader, config))
    share = HostShare(examples[start:], config.batch_size, host, hosts)
    return iter(_batched(share, config.batch_size // hosts, config.loader_threads))


def training_order(examples: int, seed: int) -> grain.MapDataset:
    """The endless sequence of record numbers that training walks along."""
    # Grain seeds epoch e with seed + e: neighbouring seeds would share their epochs.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(examples).seed(spread).shuffle().repeat()


def evaluation_batches(
    reader: Reader, config: ConfigDict, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """The whole split once, in order, its last batch filled up with blank pictures.

    Yields:
      'image' `[B, S, S, 3]` uint8, with several `config.crops` `[B, crops, S, S, 3]`; 'label' `[B]`
      int32; and 'mask' `[B]` float32: 1, but 0 for filling and -1 for a picture that cannot be
      read.
    """
    padded = -(-len(reader) // config.batch_size) * config.batch_size
    examples = grain.MapDataset.range(padded).map(_Evaluation(reader, config))
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


class _Training(grain.transforms.RandomMap):
    def __init__(self, reader: Reader, config: ConfigDict):
        self.reader, self.config = reader, config

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, Any]:
        picture, record = self.reader.read_or_next(element)
        picture = pictures.for_training(picture, self.config, rng)
        return {'image': picture, 'label': np.asarray(record['label'], np.int32)}


class _Evaluation(grain.transforms.Map):
    def __init__(self, reader: Reader, config: ConfigDict):
        self.reader, self.config = reader, config

    def map(self, element: int) -> dict[str, Any]:
        config = self.config
        filling = element >= len(self.reader)
        found = None if filling else self.reader.read(element)
        if found is None:
            crops = np.zeros((config.crops, config.image_size, config.image_size, 3), np.uint8)
            # A label of the right shape.
            label = np.zeros_like(self.reader.source[0]['label'], np.int32)
            mask = 0 if filling else -1
        else:
            picture, record = found
            crops = pictures.EVALUATION_CROPS[config.crops](picture, config)
            label, mask = np.asarray(record['label'], np.int32), 1
        image = crops if config.crops > 1 else crops[0]
        return {'image': image, 'label': label, 'mask': np.float32(mask)}
