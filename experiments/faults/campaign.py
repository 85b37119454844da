"""Kills a small real run at random moments, and checks whether anything was lost.

    python experiments/faults/campaign.py --kills=60

A run on the digits gets SIGKILL or SIGTERM after a time drawn uniformly from the length of a run.
It is started again until it is finished, and then the next run begins, up to the number of kills.
Each finished run is compared with one that was never stopped: all bits of the weights, and every
number in metrics.jsonl but the speed.
"""

import collections
import json
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
from absl import flags
from tqdm import tqdm

import xception_flax
from xception_flax.base import signals
from xception_flax.runtime import program, writers

flags.DEFINE_integer('kills', 60, 'Number of signals to send.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Seed of the moments and signals.')

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 80
RUN = (
    sys.executable, '-u', '-m', 'xception_flax.main', '--config=configs/digits.py',
    f'--config.total_steps={STEPS}', '--config.eval_steps=20', '--config.checkpoint_steps=5',
    '--config.log_steps=1', '--config.batch_size=32', '--config.xception.middle_repeats=1',
)  # fmt: skip
STAGES = {  # by name: what the run has printed by then
    'starting': '',
    'compiling': 'compiling the training step',
    'training': 'first step after',
    'done': 'final test,',
}


def main() -> None:
    """Runs the campaign and prints its table."""
    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to the runs
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(pathlib.Path(folder), values.kills, random.Random(values.seed))
    for name, value in found.items():
        print(f'| {name} | {value} |')


def campaign(folder: pathlib.Path, kills: int, rng: random.Random) -> dict[str, str]:
    """Sends `kills` signals to runs in `folder`; returns the rows of the table."""
    whole = folder / 'whole'
    life = start(whole, None, None)[2]
    life = start(folder / 'again', None, None)[2]  # with the compilation cache of the first
    counts: collections.Counter[str] = collections.Counter()
    lost = differing = redo = runs = 0
    with tqdm(total=kills, unit='kill', file=sys.stderr) as bar:
        while sum(counts.values()) < kills:
            workdir = folder / f'run{runs}'
            runs += 1
            status = None
            while status != 0:
                newest, reached = max(steps(workdir), default=0), logged(workdir)
                number = rng.choice((signal.SIGKILL, signal.SIGTERM))
                output, status, _ = start(workdir, number, rng.uniform(0, life))
                resumed = start_step(output)
                if resumed is not None:
                    lost += resumed < newest
                    redo = max(redo, reached - resumed)
                if status != 0:
                    if status not in (-signal.SIGKILL, -signal.SIGTERM, signals.STATUS):
                        raise SystemExit(f'ended with status {status}:\n{output}')
                    stage = [name for name, text in STAGES.items() if text in output][-1]
                    saved = status == signals.STATUS
                    how = f'exit {status}' if saved else signal.Signals(-status).name
                    counts[f'{signal.Signals(number).name} while {stage}, {how}'] += 1
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


def start(workdir: pathlib.Path, number: int | None, after: float | None) -> tuple[str, int, float]:
    """Starts the run and waits for its end; returns its output, status and time in seconds.

    Args:
      workdir: folder of the run.
      number: signal to send, or None.
      after: seconds after which to send it.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [*RUN, f'--workdir={workdir}'],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        output, _ = process.communicate()
    return output, process.returncode, time.monotonic() - began


def steps(workdir: pathlib.Path) -> list[int]:
    """The steps of all finished checkpoints."""
    return [int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()]


def logged(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl."""
    path = workdir / 'metrics.jsonl'
    found = re.findall(r'^{"step": (\d+),.*}$', path.read_text(), re.M) if path.exists() else []
    return int(found[-1]) if found else 0


def start_step(output: str) -> int | None:
    """The step that a start resumed from, 0 for a new run; None if it was killed before that."""
    if found := re.search(r'resuming from the checkpoint of step ([\d,]+)', output):
        return int(found[1].replace(',', ''))
    return 0 if STAGES['compiling'] in output else None


def same(workdir: pathlib.Path, whole: pathlib.Path) -> bool:
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
