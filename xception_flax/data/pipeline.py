"""Batches for this host, from a source, by Grain.

Every example has one global index: position `i` of an endless sequence of shuffled epochs. Step `s`
takes the indices from `s * batch_size` on; each host takes its own stretch of every batch. What a
batch holds thus depends on the seed and the index alone, not on hosts, threads or restarts, and a
single number is enough to go on from.
"""

import concurrent.futures
import threading
import weakref
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
    return _iterate(examples[start:], config, host, hosts)


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
    return _iterate(examples, config, host, hosts)


def _iterate(
    examples: grain.MapDataset, config: ConfigDict, host: int, hosts: int
) -> Iterator[Batch]:
    share = _HostShare(examples, config.batch_size, host, hosts, config.loader_threads)
    # Two at least, so that no thread is idle while a batch's last pictures are decoded. (Grain's
    # own prefetching of single pictures looks at all that are ready for each that it hands out:
    # most of a second for a batch of 1024.)
    count = max(2, -(-2 * config.loader_threads // share.size))
    ahead = grain.ReadOptions(num_threads=count, prefetch_buffer_size=count)
    batches = iter(share.to_iter_dataset(ahead))
    # When it is given up, nobody wants what waits to be decoded. (A finalizer may run in any thread
    # at any time: it must not take a lock, as a shutdown of the pool would.)
    weakref.finalize(batches, setattr, share, 'wanted', False)
    return batches


class _HostShare(grain.MapDataset):
    """One host's stretch of every global batch of the parent's examples, as one batch."""

    def __init__(
        self, parent: grain.MapDataset, batch_size: int, host: int, hosts: int, threads: int
    ):
        super().__init__(parent)
        self.batch_size, self.size = batch_size, batch_size // hosts
        self.offset = host * self.size
        self.pool = concurrent.futures.ThreadPoolExecutor(threads, 'decode')
        self.wanted = True

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size

    def __getitem__(self, number: int) -> Batch:
        start = number * self.batch_size + self.offset
        batch: Batch = {}
        lock = threading.Lock()

        def put(place: int) -> None:
            if not self.wanted:
                return
            example = self._parent[start + place]
            with lock:
                if not batch:  # the first that is ready says what there is
                    for name, value in example.items():
                        batch[name] = np.empty((self.size, *value.shape), value.dtype)
            for name, value in example.items():
                if value.shape != batch[name].shape[1:]:
                    raise ValueError(f'{name}: {value.shape} beside {batch[name].shape[1:]}')
                batch[name][place] = value

        for _ in self.pool.map(put, range(self.size)):
            pass  # an error is raised here
        return batch


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
