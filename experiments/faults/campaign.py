"""Kills a small real run at random moments, and looks at whether anything was lost.

    python experiments/faults/campaign.py --kills=60

A run on the digits is started, and SIGKILL or SIGTERM sent to it after a time drawn uniformly from
a run's life; it is started again, and so on until it is through. Then the next run begins, until
there have been so many kills. Each finished run is compared with one that was never stopped: all
bits of the weights, and every number of metrics.jsonl but the speed.
"""

import argparse
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
from tqdm import tqdm

import xception_flax

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 80
RUN = (
    sys.executable, '-u', '-m', 'xception_flax.main', '--config=configs/digits.py',
    f'--config.total_steps={STEPS}', '--config.eval_steps=20', '--config.checkpoint_steps=5',
    '--config.log_steps=1', '--config.batch_size=32', '--config.xception.middle_repeats=1',
)  # fmt: skip
STAGES = {
    'starting': '',
    'compiling': 'compiling the training step',
    'training': 'first step after',
    'done': 'final test accuracy',
}
AGAIN = 75


def main() -> None:
    """Runs the campaign and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=60)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(pathlib.Path(folder), args.kills, random.Random(args.seed))
    for name, value in found.items():
        print(f'| {name} | {value} |')


def campaign(folder: pathlib.Path, kills: int, rng: random.Random) -> dict[str, str]:
    """Kills so many times, in `folder`; gives the table's rows."""
    whole = folder / 'whole'
    life = start(whole, None, None)[2]
    life = start(folder / 'again', None, None)[2]  # with what the compiler has kept
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
                resumed = going_on(output)
                if resumed is not None:  # it came as far as that
                    lost += resumed < newest
                    redo = max(redo, reached - resumed)
                if status != 0:
                    if status not in (-signal.SIGKILL, -signal.SIGTERM, AGAIN):
                        raise SystemExit(f'ended with status {status}:\n{output}')
                    stage = [name for name, text in STAGES.items() if text in output][-1]
                    how = 'exit 75' if status == AGAIN else signal.Signals(-status).name
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
    """Starts the run, perhaps to send it a signal; gives its output, status and time in seconds."""
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
    """The steps that there are finished checkpoints of."""
    return [int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()]


def logged(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl."""
    path = workdir / 'metrics.jsonl'
    found = re.findall(r'^{"step": (\d+),.*}$', path.read_text(), re.M) if path.exists() else []
    return int(found[-1]) if found else 0


def going_on(output: str) -> int | None:
    """The step that a start went on from (0: from the beginning), None if it died before that."""
    if found := re.search(r'going on from the checkpoint of step ([\d,]+)', output):
        return int(found[1].replace(',', ''))
    return 0 if STAGES['compiling'] in output else None


def same(workdir: pathlib.Path, whole: pathlib.Path) -> bool:
    """Whether two runs have the same weights, bit for bit, and the same numbers."""
    numbers = []
    for folder in (workdir, whole):
        lines = (folder / 'metrics.jsonl').read_text().splitlines()
        records = [json.loads(line) for line in lines]
        numbers.append(
            [{k: v for k, v in r.items() if k != 'examples_per_second'} for r in records]
        )
    if numbers[0] != numbers[1]:
        return False
    for weights in ('live', 'averaged'):
        ours, theirs = (
            jax.tree.leaves(xception_flax.load_checkpoint(folder, weights=weights)[1])
            for folder in (workdir, whole)
        )
        if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            return False
    return True


if __name__ == '__main__':
    main()
