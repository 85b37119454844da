"""Kills a small real run at random moments, and checks whether anything was lost.

    python experiments/faults/campaign.py --kills=60
    python experiments/faults/campaign.py --kills=60 --bucket
    python experiments/faults/campaign.py --kills=30 --bucket --processes=2

A run on the digits gets SIGKILL or SIGTERM after a time drawn uniformly from the length of a run.
It is started again until it is finished, and then the next run begins, up to the number of kills.
Each finished run is compared with one that was never stopped: all bits of the weights, and every
number in metrics.jsonl but the speed. With --bucket the runs are in a bucket of a server on this
machine. Of two processes the first, the second or both get the signal.
"""

import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import store
from absl import flags
from tqdm import tqdm

import xception_flax
from xception_flax.base import locks, paths, signals
from xception_flax.runtime import checkpoints, program, writers

flags.DEFINE_integer('kills', 60, 'Number of kills.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Seed of the moments and signals.')
flags.declare_key_flag('processes')
flags.DEFINE_bool('bucket', False, 'Run in a bucket of a server on this machine.')
flags.DEFINE_integer('lifetime', 6, 'In a bucket: LIFETIME of a lease in seconds.', lower_bound=1)

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 80
# `python -m xception_flax.main` with leases of another lifetime.
MAIN = """
import runpy, sys
from xception_flax.base import locks
locks.LIFETIME = float(sys.argv.pop(1))
locks.RENEWAL = locks.LIFETIME / 6
runpy.run_module('xception_flax.main', run_name='__main__', alter_sys=True)
"""
RUN = (
    '--config=configs/digits.py', f'--config.total_steps={STEPS}', '--config.eval_steps=20',
    '--config.checkpoint_steps=5', '--config.log_steps=1', '--config.batch_size=32',
    '--config.xception.middle_repeats=1',
)  # fmt: skip
STAGES = {  # by name: what the run has printed by then
    'starting': '',
    'waiting for a lease': 'watching whether',
    'compiling': 'compiling the training step',
    'training': 'first step after',
    'done': 'final test,',
}
ENDS = (-signal.SIGKILL, -signal.SIGTERM, signals.STATUS)  # after a signal
PATIENCE = 20  # seconds after which one of several processes gives up the others


def main() -> None:
    """Runs the campaign and prints its table."""
    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to the runs
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'compiled')
        server = None
        if values.bucket:
            server = store.Server(folder / 'store')
            os.environ.update(store.environment(server.port))
        where = paths.folder(server.make('campaign') if server else folder)
        try:
            found = campaign(where, values.kills, values.processes or 1, values.seed)
        finally:
            if server:
                server.stop()
    if server:
        found['lifetime of a lease'] = f'{values.lifetime} s; {locks.LIFETIME:.0f} s in the package'
    for name, value in found.items():
        print(f'| {name} | {value} |')


def campaign(folder: paths.Path, kills: int, processes: int, seed: int) -> dict[str, str]:
    """Sends `kills` signals to runs in `folder`; returns the rows of the table."""
    rng = random.Random(seed)
    whole = folder / 'whole'
    life = start(whole, processes)[2]
    life = start(folder / 'again', processes)[2]  # with the compilation cache of the first
    counts: collections.Counter[str] = collections.Counter()
    lost = differing = redo = runs = 0
    with tqdm(total=kills, unit='kill', file=sys.stderr) as bar:
        while sum(counts.values()) < kills:
            workdir = folder / f'run{runs}'
            runs += 1
            statuses = [1]
            while any(statuses):
                newest, reached = max(checkpoints.saved_steps(workdir), default=0), logged(workdir)
                number = rng.choice((signal.SIGKILL, signal.SIGTERM))
                after = rng.uniform(0, life)
                who = rng.choice(((0,), (1,), (0, 1))) if processes == 2 else (0,)
                output, statuses, _ = start(workdir, processes, number, after, who)
                resumed = start_step(output)
                if resumed is not None:
                    lost += resumed < newest
                    redo = max(redo, reached - resumed)
                if any(statuses):
                    # JAX aborts a process when another one is silent.
                    allowed = (*ENDS, -signal.SIGABRT, 0) if processes > 1 else ENDS
                    if not set(statuses) <= set(allowed):
                        raise SystemExit(f'{workdir} ended with {statuses}:\n{output}')
                    counts[kind(number, who, processes, output, statuses)] += 1
                    bar.update()
            differing += not same(workdir, whole)
    return {
        'kills': str(sum(counts.values())),
        **{f'- {key}': str(count) for key, count in sorted(counts.items())},
        'runs, all of which ended': str(runs),
        'lost checkpoints': str(lost),
        'runs with a bit or a number that differs': str(differing),
        'longest redo': f'{redo} of {STEPS} steps',
        'life of a run': f'{life:.0f} s',
    }


def start(
    workdir: paths.Path, processes: int, number: int = 0, after: float = 1e6,
    who: tuple[int, ...] = (0,),
) -> tuple[str, list[int], float]:  # fmt: skip
    """Starts the run and waits for its end; returns its output, statuses and time in seconds.

    Args:
      workdir: folder of the run.
      processes: number of processes.
      number: signal to send.
      after: seconds after which to send it.
      who: the processes that get it.
    """
    began = time.monotonic()
    command = [
        sys.executable, '-u', '-c', MAIN, str(flags.FLAGS.lifetime), *RUN, f'--workdir={workdir}',
    ]  # fmt: skip
    if processes > 1:
        address = f'localhost:{store.free_port()}'
        command += [
            f'--coordinator={address}',
            f'--processes={processes}',
            f'--patience={PATIENCE}',
        ]
    with tempfile.TemporaryFile('w+') as output:
        started = [
            subprocess.Popen(
                [*command, *([f'--process={i}'] if processes > 1 else [])],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for i in range(processes)
        ]
        while time.monotonic() < began + after and any(p.poll() is None for p in started):
            time.sleep(0.01)
        for i in who:
            started[i].send_signal(number)
        statuses = [process.wait() for process in started]
        output.seek(0)
        return output.read(), statuses, time.monotonic() - began


def kind(
    number: int, who: tuple[int, ...], processes: int, output: str, statuses: list[int]
) -> str:
    """A kill, for the table: the signal, who got it, when, and how the processes ended."""
    stage = [name for name, text in STAGES.items() if text in output][-1]
    whom = f' of process {" and ".join(map(str, who))}' if processes > 1 else ''
    ends = [
        f'exit {status}' if status >= 0 else signal.Signals(-status).name for status in statuses
    ]
    return f'{signal.Signals(number).name}{whom} while {stage}, {", ".join(ends)}'


def logged(workdir: paths.Path) -> int:
    """The last step in metrics.jsonl."""
    path = workdir / 'metrics.jsonl'
    found = re.findall(r'^{"step": (\d+),.*}$', path.read_text(), re.M) if path.exists() else []
    return int(found[-1]) if found else 0


def start_step(output: str) -> int | None:
    """The step that a start resumed from, 0 for a new run; None if it was killed before that."""
    if found := re.search(r'resuming from the checkpoint of step ([\d,]+)', output):
        return int(found[1].replace(',', ''))
    return 0 if STAGES['compiling'] in output else None


def same(workdir: paths.Path, whole: paths.Path) -> bool:
    """Whether two runs have the same weights, bit for bit, and the same numbers."""
    numbers = []
    for folder in (workdir, whole):
        lines = (folder / 'metrics.jsonl').read_text().splitlines()
        records = [json.loads(line) for line in lines]
        numbers.append(
            [{k: v for k, v in r.items() if k not in writers.OF_THE_CLOCK} for r in records]
        )
    if numbers[0] != numbers[1]:
        return False
    for weights in ('live', 'averaged'):
        ours, theirs = (
            jax.tree.leaves(xception_flax.load(folder, weights=weights).variables)
            for folder in (workdir, whole)
        )
        if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            return False
    return True


if __name__ == '__main__':
    program.run(main, alone=True)
