"""Processes that load images: one process's threads share Python's lock, several do not.

They have no part in what a batch holds, which its number alone decides.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

import grain
from absl import flags
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError

CORES = 4  # for each process, and so many threads at least
FEWEST_CORES = 8  # with fewer the lock is no limit
FEWEST_EXAMPLES = 10_000  # the processes take seconds to start


def number(config: ConfigDict, examples: int) -> int:
    """The number of processes for a split of so many examples; 0: threads of this one do it."""
    if config.loader_processes is not None:
        return config.loader_processes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if (cores or 1) < FEWEST_CORES or examples < FEWEST_EXAMPLES:
        return 0
    return (cores or 1) // CORES


def spread(batches: grain.IterDataset, count: int) -> grain.IterDataset:
    """Has `count` processes make the batches, in turns; they come in shared memory.

    Raises:
      UserError: this program cannot be started again, as each of them does.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain hands its own on; a notebook has parsed none
    # A process that dies before it has read what it is to do would stop this one for ever.
    first = multiprocessing.get_context('spawn').Process(target=_nothing)
    first.start()
    first.join()
    if first.exitcode:
        raise UserError(
            'no process could be started to load images: keep the script in a file, and what it '
            "does under `if __name__ == '__main__':`; or set config.loader_processes=0"
        )
    options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=1)
    return batches.mp_prefetch(options, worker_init_fn=_begin)


def _nothing() -> None:
    pass


def _begin(index: int, count: int) -> None:
    """Prepares a process: signals are for the one that trains, without which it ends."""
    del index, count
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def failure(error: RuntimeError) -> UserError | None:
    """The error for people, if a process has died."""
    if 'orker process' not in str(error):
        return None
    return UserError(
        'a process that loads images has died, perhaps for want of memory; start again, with '
        'fewer (config.loader_processes) or smaller batches'
    )
