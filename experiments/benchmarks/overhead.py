"""Overhead of a run: import, start, compilation, and the host's CPU time per step.

  python -m experiments.benchmarks.overhead --output=overhead.json

Xception at 299x299 with four images, in float32, is started from the command line, with an empty
and with a full compilation cache; its training step alone is traced, lowered and compiled. The
host's time is the CPU time of the main thread (which neither reads nor decodes) per step of the
whole training loop, with metrics and log, on eight simulated devices: the difference of a long and
a short run of a tiny network.
"""

import contextlib
import io
import itertools
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any
from unittest import mock

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns
from xception_flax.runtime import program

flags.DEFINE_integer('rounds', 3, 'Measurements of each.', lower_bound=1)
flags.DEFINE_string('output', None, 'A JSON file for all numbers.')

CONFIG, BATCH, SIZE = 'configs/imagenet.py', 4, 299
SETTINGS = {
    'batch_size': BATCH, 'image_size': SIZE, 'total_steps': 9, 'dtype': 'float32',
    'dataset.source': 'synthetic', 'dataset.eval_split': 'train',
}  # fmt: skip
MAIN = (
    '-m', 'xception_flax.main', f'--config={CONFIG}',
    *(f'--config.{path}={value}' for path, value in SETTINGS.items()),
)  # fmt: skip
IMPORT = 'import time; t = time.time(); import xception_flax; print(time.time() - t)'
TINY = {
    'batch_size': 8, 'xception.width': 0.05, 'xception.middle_repeats': 0,
    'eval_percent': 100.0, 'log_steps': 50,
}  # fmt: skip


def main() -> None:
    """Measures by the flags."""
    os.environ['JAX_PLATFORMS'] = 'cpu'  # for the processes started here
    values, console = flags.FLAGS, Console()
    found: dict[str, list[float]] = {}
    for _ in range(values.rounds):
        found.setdefault('import xception_flax', []).append(importing())
        with tempfile.TemporaryDirectory() as folder:
            for cache in ('empty', 'full'):
                whole = starting(f'{folder}/start')
                found.setdefault(f'start to first step, {cache} cache', []).append(whole)
            for cache in ('empty', 'full'):
                parts = elsewhere(compiling, f'{folder}/step', devices=1)
                for part, seconds in zip(('trace', 'lower'), parts, strict=False):
                    found.setdefault(f'{part} the step', []).append(seconds)
                found.setdefault(f'compile the step, {cache} cache', []).append(parts[-1])
            host = elsewhere(hosting, f'{folder}/host', devices=8)
            found.setdefault('host per step, eight devices', []).append(host)
    table = Table('', 'median', 'from', 'to', title=turns.machine())
    for what, seconds in found.items():
        cells = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(what, *(f'{1e3 * s:.2f} ms' if s < 1 else f'{s:.1f} s' for s in cells))
    console.print(table)
    versions = turns.installed({'xception_flax': ('jax', 'flax')}, console)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions, 'seconds': found}
    turns.publish(results, console)


def importing() -> float:
    """Seconds of the import, without the start of Python."""
    return float(subprocess.check_output([sys.executable, '-c', IMPORT], cwd=turns.ROOT))


def elsewhere(work: Callable[[], Any], cache: str, devices: int) -> Any:
    """Runs `work` in a process of its own, with a compilation cache; returns its result."""
    settings = {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_NUM_CPU_DEVICES': str(devices)}
    spawn = multiprocessing.get_context('spawn')
    with mock.patch.dict(os.environ, settings), futures.ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(work).result()


def starting(cache: str) -> float:
    """Seconds from the command to the end of the first step."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        process = subprocess.Popen(
            [sys.executable, *MAIN, f'--workdir={workdir}'],
            cwd=turns.ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_NUM_CPU_DEVICES': '1'},
        )  # fmt: skip
        assert process.stdout is not None
        if not any(line.startswith('first step after') for line in process.stdout):
            sys.exit(f'the run ended with status {process.wait()} before its first step')
        took = time.perf_counter() - began
        process.kill()
        process.communicate()
    return took


def compiling() -> tuple[float, ...]:
    """Seconds to trace, to lower and to compile the training step."""
    import jax
    import jax.numpy as jnp

    from experiments.studies import settings
    from xception_flax.training.setup import set_up

    run = set_up(settings.read(CONFIG, SETTINGS))
    given = {
        'image': jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    moments = [time.perf_counter()]
    traced = run.train_step.trace(run.abstract_state, given)
    moments.append(time.perf_counter())
    lowered = traced.lower()
    moments.append(time.perf_counter())
    lowered.compile()
    moments.append(time.perf_counter())
    return tuple(after - before for before, after in itertools.pairwise(moments))


def hosting() -> float:
    """CPU seconds of the main thread per step; for a process with eight devices."""
    from experiments.studies import settings
    from xception_flax.training.loop import train

    def run(steps: int) -> float:
        config = settings.read('configs/digits.py', TINY | {'total_steps': steps})
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
            began = time.thread_time()
            train(config, pathlib.Path(workdir))
            return time.thread_time() - began

    run(100)  # fills the compilation cache
    return (run(2100) - run(100)) / 2000


if __name__ == '__main__':
    program.run(main, alone=True)
