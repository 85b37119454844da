"""Set before anything imports jax or keras; and how tests start the programs."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

os.environ.setdefault('KERAS_BACKEND', 'jax')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# XLA's programs, shared by all processes that the tests start (and by pytest's own workers, which
# inherit the name). Not JAX_COMPILATION_CACHE_DIR for the tests themselves, whose own compilations
# are many and small.
OWNER = 'XCEPTION_FLAX_TEST_CACHE' not in os.environ
CACHE = os.environ.setdefault('XCEPTION_FLAX_TEST_CACHE', tempfile.mkdtemp() if OWNER else '')
ROOT = pathlib.Path(__file__).parents[1]


def pytest_unconfigure():
    """Removes the compiled programs, at the very end."""
    if OWNER:
        shutil.rmtree(CACHE, ignore_errors=True)


def start(*args: str, devices: int | None = None, **env: str) -> subprocess.Popen:
    """Starts `python *args` in the project's root, on so many simulated devices."""
    if devices is not None:
        env['JAX_NUM_CPU_DEVICES'] = str(devices)
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env={
            **os.environ,
            'JAX_COMPILATION_CACHE_DIR': CACHE,
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope='session')
def program():
    """Runs `python *args`; gives what it printed, and fails if it failed."""

    def run(*args: str, devices: int | None = None, status: int = 0, **env: str) -> str:
        process = start(*args, devices=devices, **env)
        out, err = process.communicate(timeout=600)
        assert process.returncode == status, f'{args}\n{out}\n{err}'
        return out + err

    return run
