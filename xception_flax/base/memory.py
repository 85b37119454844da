"""Settings of the C library's allocator for training on CPU."""

import ctypes
import sys

from xception_flax.base import accelerators

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # from glibc's malloc.h


def keep_freed() -> None:
    """Keeps freed memory in the process, if the C library is glibc and there is no accelerator.

    XLA on CPU frees its temporary memory after each step. By default large blocks then return to
    the system, which zeroes them again for the next step: a tenth (batch 4) or a fifth (batch 16)
    of the step time of Xception at 299x299. Call it before JAX starts its threads, which would
    already have their own arenas.
    """
    if sys.platform != 'linux' or accelerators.present():
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_ARENA_MAX, 1)
