"""The batches of one process, from a source, by Grain.

Every example has a global index: its position in an endless sequence of shuffled epochs. Step `s`
takes the `batch_size` indices from `s * batch_size`; each process takes a contiguous part of them.
So a batch depends on the seed and the index alone, not on processes, threads or restarts, and one
number is enough to resume.
"""

import concurrent.futures
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from xception_flax.data import images, workers
from xception_flax.data.reader import Reader, Unreadable

Batch = dict[str, Any]  # arrays, by name


def training_batches(
    reader: Reader, config: ConfigDict, start: int, process: int = 0, processes: int = 1
) -> 'Batches':
    """Endless batches of augmented images, shuffled anew in each epoch.

    An unreadable image is replaced by the next readable one of the source.

    Args:
      reader: reader of the training split.
      config: the run's config.
      start: global index of the first example.
      process: index of this process.
      processes: number of processes, which divides the batch size.

    Yields:
      'image' `[B, S, S, 3]` uint8 and 'label' `[B]` int32, where B is `batch_size / processes`.
    """
    examples = training_order(len(reader), config.seed).random_map(_Training(reader, config))
    return Batches(examples[start:], reader, config, process, processes)


def training_order(examples: int, seed: int) -> grain.MapDataset:
    """The endless sequence of record numbers, in the order of training."""
    # Grain seeds epoch e with seed + e, so neighbouring seeds would share epochs.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(examples).seed(spread).shuffle().repeat()


def evaluation_batches(
    reader: Reader, config: ConfigDict, process: int = 0, processes: int = 1
) -> 'Batches':
    """The whole split once, in order; blank images pad the last batch.

    Yields:
      'image' `[B, S, S, 3]` uint8, with several `config.crops` `[B, crops, S, S, 3]`; 'label' `[B]`
      int32; and 'mask' `[B]` float32: 1 for an image, 0 for padding, -1 for an unreadable one.
    """
    padded = -(-len(reader) // config.batch_size) * config.batch_size
    examples = grain.MapDataset.range(padded).map(_Evaluation(reader, config))
    return Batches(examples, reader, config, process, processes)


class Batches(Iterator[Batch]):
    """Batches that are made ahead of their use; `close` ends the threads or processes."""

    def __init__(
        self,
        examples: grain.MapDataset,
        reader: Reader,
        config: ConfigDict,
        process: int,
        processes: int,
    ):
        self.reader = reader
        count = workers.number(config, len(reader), processes)
        self._in_processes = count > 0
        threads = config.loader_threads
        if count:
            threads = max(workers.CORES, threads // count)
        local = _LocalBatches(examples, config.batch_size, process, processes, threads)
        # At least two batches, so that no thread is idle while the last images of one are decoded;
        # of several processes others decode then. (Grain could prefetch single images, but it
        # checks all that are ready for each that it returns: most of a second for a batch of 1024.)
        ahead = 1 if count else max(2, -(-2 * threads // local.size))
        read = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        batches = local.to_iter_dataset(read)
        self._batches: Any = iter(workers.spread(batches, count) if count else batches)
        # When the iterator is dropped, waiting images need no decoding. (A finalizer may run in any
        # thread at any time, so it must not take a lock, as a shutdown of the pool would.)
        self._local = local
        weakref.finalize(self, setattr, local, 'wanted', False)

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            raise workers.failure(error) or error from error
        self.reader.count(batch.pop('unreadable'))
        return batch

    def close(self) -> None:
        """Ends what makes batches, and frees those that nobody took."""
        self._local.wanted = False
        # Each process ends after its batch: all at once, where Grain waits for one after the other.
        parts = [part for part in getattr(self._batches, '_iterators_in_use', ()) if part]
        if parts:
            with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
                list(threads.map(lambda part: part.close(), parts))
        self._batches.close()
        self._batches = iter(())
        if self._in_processes:
            gc.collect()  # Grain's last ones, in shared memory, are in a cycle with a StopIteration
            time.sleep(0.1)  # a thread of Grain's unlinks that memory


class _LocalBatches(grain.MapDataset):
    """The part of every global batch that one process takes, as one batch."""

    def __init__(
        self, parent: grain.MapDataset, batch_size: int, process: int, processes: int, threads: int
    ):
        super().__init__(parent)
        self.batch_size, self.size = batch_size, batch_size // processes
        self.offset = process * self.size
        self.threads, self.wanted = threads, True
        self._start()

    def _start(self) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(self.threads, 'decode')

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != 'pool'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()  # threads of the process that makes the batches

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size

    def __getitem__(self, number: int) -> Batch:
        start = number * self.batch_size + self.offset
        batch: Batch = {}
        unreadable: Unreadable = []
        lock = threading.Lock()

        def put(position: int) -> None:
            if not self.wanted:
                return
            example = self._parent[start + position]
            with lock:
                unreadable.extend(example.pop('unreadable'))
                if not batch:  # the first example that is ready tells names and shapes
                    for name, value in example.items():
                        batch[name] = np.empty((self.size, *value.shape), value.dtype)
            for name, value in example.items():
                if value.shape != batch[name].shape[1:]:
                    raise ValueError(f'{name} has shapes {value.shape} and {batch[name].shape[1:]}')
                batch[name][position] = value

        for _ in self.pool.map(put, range(self.size)):
            pass  # an error is raised here
        return batch | {'unreadable': sorted(unreadable)}


class _Training(grain.transforms.RandomMap):
    def __init__(self, reader: Reader, config: ConfigDict):
        self.reader, self.config = reader, config

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, Any]:
        unreadable: Unreadable = []
        image, record = self.reader.read_or_next(element, unreadable)
        image = images.for_training(image, self.config, rng)
        label = np.asarray(record['label'], np.int32)
        return {'image': image, 'label': label, 'unreadable': unreadable}


class _Evaluation(grain.transforms.Map):
    def __init__(self, reader: Reader, config: ConfigDict):
        self.reader, self.config = reader, config

    def map(self, element: int) -> dict[str, Any]:
        config = self.config
        unreadable: Unreadable = []
        padding = element >= len(self.reader)
        found = None if padding else self.reader.read(element, unreadable)
        if found is None:
            crops = np.zeros((config.crops, config.image_size, config.image_size, 3), np.uint8)
            label = self.reader.blank_label
            mask = 0 if padding else -1
        else:
            image, record = found
            crops = images.EVALUATION_CROPS[config.crops](image, config)
            label, mask = np.asarray(record['label'], np.int32), 1
        image = crops if config.crops > 1 else crops[0]
        return {'image': image, 'label': label, 'mask': np.float32(mask), 'unreadable': unreadable}
