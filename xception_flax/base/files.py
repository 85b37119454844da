"""Locks, and open files of the process."""

import contextlib
import os
from collections.abc import Iterator

import filelock


@contextlib.contextmanager
def lock(path: str | os.PathLike, timeout: float = 0) -> Iterator[bool]:
    """Holds a lock inside the context, if it is free; gives whether it was.

    A mount that knows no locks counts as free.

    Args:
      path: the lock's file.
      timeout: seconds to wait for it; -1 for ever.
    """
    held = filelock.FileLock(path, timeout=timeout)
    try:
        held.acquire()
    except filelock.Timeout:
        yield False
        return
    except NotImplementedError:
        pass
    try:
        yield True
    finally:
        held.release()


def allow_open(count: int) -> None:
    """Lets the process have so many more files open, as far as the system allows it.

    1,024 is a usual limit, and a usual number of shards.
    """
    try:
        import resource  # not on Windows
    except ModuleNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + count
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
