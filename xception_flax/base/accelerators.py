"""Accelerators of the machine, by their device files."""

import os
import pathlib
import sys

DEVICES = pathlib.Path('/dev')
# Device files, what they are, and the extra that installs JAX's plugin for it; of a TPU older and
# newer ones.
FILES = {
    'nvidia[0-9]*': ('a GPU', "pip install -U -e '.[gpu]' (CUDA 12; '.[gpu13]' for CUDA 13)"),
    'accel[0-9]*': ('a TPU', "pip install -U -e '.[tpu]'"),
    'vfio/[0-9]*': ('a TPU', "pip install -U -e '.[tpu]'"),
    'kfd': ('an AMD GPU', 'see the installation of JAX for ROCm'),
}


def present() -> list[str]:
    """The patterns of `FILES` of which the machine has a file; none except on Linux."""
    return [name for name in FILES if sys.platform == 'linux' and any(DEVICES.glob(name))]


def unseen(platform: str) -> str:
    """A warning if JAX computes on CPU on a machine with an accelerator, which nobody asked for.

    JAX leaves out a plugin that is missing, or that another version of JAX would need, and goes on.

    Args:
      platform: where JAX computes: `jax.default_backend()`.
    """
    found = present()
    if platform != 'cpu' or not found or 'cpu' in os.environ.get('JAX_PLATFORMS', ''):
        return ''
    what, how = FILES[found[0]]
    return (
        f'this machine seems to have {what} (/dev/{found[0]}), but JAX sees none and computes on '
        f'the CPU. Mend the installation: {how}; or say that this is meant: JAX_PLATFORMS=cpu'
    )
