"""The C library's allocator, as training on CPU wants it."""

import ctypes
import pathlib
import sys

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # of glibc's malloc.h


# Files of accelerators: NVIDIA's, TPUs' (older and newer), AMD's.
_ACCELERATORS = ('nvidia[0-9]*', 'accel[0-9]*', 'vfio/[0-9]*', 'kfd')


def keep_freed() -> None:
    """Keeps freed memory in the process, where the C library is glibc and there is no accelerator.

    XLA on CPU frees a step's temporary memory after each step. By default large pieces then go back
    to the system, which has to fill them with zeros when the next step takes them: of the time of a
    step of Xception at 299x299, a tenth (batch 4) or a fifth (batch 16). Call it before JAX has
    started its threads, which would have arenas of their own already.
    """
    devices = pathlib.Path('/dev')
    if sys.platform != 'linux' or any(any(devices.glob(name)) for name in _ACCELERATORS):
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_ARENA_MAX, 1)
