"""Processes that load images: one process's threads share Python's lock, several do not.

They have no part in what a batch holds, which its number alone decides.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import signal
import threading

import grain
from absl import flags
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError

CORES = 4  # for each process, and so many threads at least
FEWEST_CORES = 8  # with fewer the lock is no limit
FEWEST_EXAMPLES = 10_000  # the processes take seconds to start
MOST = 32
WAITING = 5  # batches of each process that are made, handed on or wait, at most
SHARED = pathlib.Path('/dev/shm')
# Number of tasks on this machine, as Slurm and Open MPI tell it.
TASKS = ('SLURM_NTASKS_PER_NODE', 'SLURM_TASKS_PER_NODE', 'OMPI_COMM_WORLD_LOCAL_SIZE')


def number(config: ConfigDict, examples: int, processes: int = 1) -> int:
    """The number of processes for a split of so many examples; 0: threads of this one do it.

    By default a quarter of this task's cores, as far as the memory for their batches allows it.

    Args:
      config: the run's config.
      examples: number of examples in the split.
      processes: number of processes that divide a batch.
    """
    if config.loader_processes is not None:
        return config.loader_processes
    cores = _cores()
    if cores < FEWEST_CORES or examples < FEWEST_EXAMPLES:
        return 0
    image = config.image_size**2 * 3 * config.crops
    batch = image * config.batch_size // processes
    return min(cores // CORES, _memory() // (WAITING * batch), MOST)


def _cores() -> int:
    """The cores for this task, by affinity, a container's quota and the tasks beside it."""
    known = hasattr(os, 'sched_getaffinity')
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _quota().split()
        cores = min(cores, int(quota) // int(period))
    tasks = next((os.environ[name] for name in TASKS if name in os.environ), '1')
    found = re.match(r'\d+', tasks)  # Slurm: 8(x4)
    return cores // max(int(found[0]) if found else 1, 1)


def _quota() -> str:
    """A container's microseconds of CPU time, or max, and in which time."""
    return pathlib.Path('/sys/fs/cgroup/cpu.max').read_text()


def _memory() -> int:
    """Bytes for waiting batches: a quarter of the memory, and what is free of the shared one."""
    if not SHARED.is_dir():
        return 0
    free = os.statvfs(SHARED)
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return min(memory // 4, free.f_bavail * free.f_frsize)


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
        'a process that loads images has died, perhaps for want of memory, also of shared memory '
        '(/dev/shm; docker run --shm-size); with config.loader_processes=0 threads load them'
    )
