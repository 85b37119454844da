"""What a run costs besides computing: importing, compiling, and the host's share of each step.

  python -m experiments.benchmarks.overhead --output=overhead.json

Xception at 299x299 with four pictures is started from the command line with an empty compilation
cache, then with a full one; 'compiling' is what `xception_flax.main` calls so, to the end of the
first step, in float32. The host's share is the CPU time of the main thread, which does not read and
decode, in a step of the whole training loop, with metrics and log, on eight simulated devices: the
difference of a long and a short run of a tiny network.
"""

import contextlib
import io
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns

flags.DEFINE_integer('rounds', 3, 'How often each is measured.', lower_bound=1)
flags.DEFINE_string('output', None, 'A JSON file for all numbers.')

MAIN = (
    '-m', 'xception_flax.main', '--config=configs/imagenet.py', '--config.batch_size=4',
    '--config.dataset.source=synthetic', '--config.dataset.eval_split=train',
    '--config.total_steps=9', '--config.dtype=float32',
)  # fmt: skip
IMPORT = 'import time; t = time.time(); import xception_flax; print(time.time() - t)'
TINY = {
    'batch_size': 8, 'xception.width': 0.05, 'xception.middle_repeats': 0,
    'eval_percent': 100.0, 'log_steps': 50,
}  # fmt: skip


def main() -> None:
    """Measures by the flags."""
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'}  # for other processes
    values, console = flags.FLAGS, Console()
    found: dict[str, list[float]] = {}
    for _ in range(values.rounds):
        found.setdefault('import xception_flax', []).append(importing())
        with tempfile.TemporaryDirectory() as folder:
            for cache in ('empty', 'full'):
                whole, compiling = starting(folder)
                found.setdefault(f'compiling, {cache} cache', []).append(compiling)
                found.setdefault(f'start to first step, {cache} cache', []).append(whole)
            os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/cache'
            with futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                host = pool.submit(hosting).result()
            found.setdefault('host in a step, eight devices', []).append(host)
    table = Table('', 'median', 'from', 'to', title=turns.machine())
    for what, seconds in found.items():
        cells = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(what, *(f'{1e3 * s:.2f} ms' if s < 1 else f'{s:.1f} s' for s in cells))
    console.print(table)
    versions = turns.installed({'xception_flax': ('jax', 'flax')}, console)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions, 'seconds': found}
    turns.publish(results, console)


def importing() -> float:
    """Seconds that the import takes, without Python's own start."""
    return float(subprocess.check_output([sys.executable, '-c', IMPORT], cwd=turns.ROOT))


def starting(folder: str) -> tuple[float, float]:
    """Seconds from the command to the end of the first step, and those of 'compiling'."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        process = subprocess.Popen(
            [sys.executable, *MAIN, f'--workdir={workdir}'],
            cwd=turns.ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ
            | {'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache', 'JAX_NUM_CPU_DEVICES': '1'},
        )  # fmt: skip
        assert process.stdout is not None
        compiling = began
        for line in process.stdout:
            if line.startswith('compiling the training step'):
                compiling = time.perf_counter()
            if line.startswith('first step after'):
                break
        else:
            sys.exit(f'it ended with {process.wait()} before its first step')
        now = time.perf_counter()
        process.kill()
        process.communicate()
    return now - began, now - compiling


def hosting() -> float:
    """CPU seconds of the main thread in a step; for a process with eight devices."""
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
    turns.run(main)
