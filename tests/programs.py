"""How tests start the programs, as a user does."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
CACHE = os.environ['XCEPTION_FLAX_TEST_CACHE']  # see conftest.py


def start(*args: str, devices: int | None = None, **env: str | None) -> subprocess.Popen:
    """Starts `python *args` in the project's root, on so many simulated devices.

    What is None in `env` is not there.
    """
    if devices is not None:
        env['JAX_NUM_CPU_DEVICES'] = str(devices)
    whole = {
        **os.environ,
        'JAX_COMPILATION_CACHE_DIR': CACHE,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        **env,
    }
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env={name: value for name, value in whole.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
