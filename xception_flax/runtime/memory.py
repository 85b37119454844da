"""The C library's allocator, as training on CPU wants it."""

import ctypes
import sys

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # of glibc's malloc.h


def keep_freed() -> None:
    """Keeps freed memory in the process, where the C library is glibc; elsewhere it does nothing.

    XLA on CPU frees a step's temporary memory after each step. By default large pieces then go back
    to the system, which has to fill them with zeros when the next step takes them: a tenth of the
    time of a step of Xception. There is one arena then for all threads.
    """
    if sys.platform != 'linux':
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_ARENA_MAX, 1)
