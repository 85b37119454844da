"""Set before anything imports jax or keras; and programs that run to their end."""

import os
import shutil
import tempfile

import pytest

os.environ.setdefault('KERAS_BACKEND', 'jax')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# XLA's programs, shared by all processes that the tests start (and by pytest's own workers, which
# inherit the name). Not JAX_COMPILATION_CACHE_DIR for the tests themselves, whose own compilations
# are many and small.
OWNER = 'XCEPTION_FLAX_TEST_CACHE' not in os.environ
CACHE = os.environ.setdefault('XCEPTION_FLAX_TEST_CACHE', tempfile.mkdtemp() if OWNER else '')


def pytest_unconfigure():
    """Removes the compiled programs, at the very end."""
    if OWNER:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope='session')
def program():
    """Runs `python *args`; gives what it printed, and fails if it failed."""
    from programs import start

    def run(*args: str, devices: int | None = None, status: int = 0, **env: str) -> str:
        process = start(*args, devices=devices, **env)
        out, err = process.communicate(timeout=600)
        assert process.returncode == status, f'{args}\n{out}\n{err}'
        return out + err

    return run
