"""Set before anything imports jax or keras; and programs that run to their end."""

import os
import shutil
import sys
import tempfile

import pytest

os.environ.setdefault('KERAS_BACKEND', 'jax')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Most of the suite's time is XLA's: this halves it, and what is compiled runs as quickly.
os.environ['XLA_FLAGS'] = f'--xla_backend_optimization_level=1 {os.environ.get("XLA_FLAGS", "")}'
# XLA's programs, shared by all processes that the tests start (and by pytest's own workers, which
# inherit the name). Not JAX_COMPILATION_CACHE_DIR for the tests themselves, whose own compilations
# are many and small.
OWNER = 'XCEPTION_FLAX_TEST_CACHE' not in os.environ
CACHE = os.environ.setdefault('XCEPTION_FLAX_TEST_CACHE', tempfile.mkdtemp() if OWNER else '')


def pytest_unconfigure():
    """Removes the compiled programs, at the very end."""
    if OWNER:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True, scope='module')
def forget_compiled_programs():
    """They are of no use to other files, and gigabytes in the end."""
    yield
    if 'jax' in sys.modules:
        sys.modules['jax'].clear_caches()


@pytest.fixture(scope='session')
def program():
    """Runs `python *args` to its end; returns what it printed. It must end with `status`."""
    from helpers import Program, start

    def run(*args: str, devices=None, status: int = 0, fresh: bool = False, **env) -> str:
        ours = args[0] == '-m' and args[1].startswith('xception_flax.')
        if ours and not fresh:
            return Program(*args, devices=devices, **env).end(status)
        process = start(*args, devices=devices, **env)
        out, err = process.communicate(timeout=600)
        assert process.returncode == status, f'{args}\n{out}\n{err}'
        return out + err

    return run


@pytest.fixture
def float64():
    """Computes in float64, where rounding cannot hide a mistake."""
    import jax

    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', False)
