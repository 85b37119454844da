"""Fine-tunes the weights of a run on a few images, in several ways; prints a table.

    python experiments/finetune/run.py WEIGHTS IMAGES FOLDER

Each line of the table has three seeds at each of two learning rates. FOLDER keeps the runs, and
finished runs in it are not repeated. The last evaluation of each run goes to a file beside this
one: the name of FOLDER with '.jsonl'. README.md has the commands that were run.
"""

import json
import pathlib
import statistics
import subprocess
import sys

from xception_flax.runtime import program

HERE = pathlib.Path(__file__).parent
SEEDS = (0, 1, 2)
LEARNING_RATES = (0.03, 0.1)
COMMON = (
    '--config=configs/finetune.py', '--config.image_size=16', '--config.xception.stem=small',
    '--config.xception.width=0.125', '--config.xception.middle_repeats=2',
    '--config.xception.bn_momentum=0.9', '--config.xception.dropout=0.2',
    '--config.augment.crop=pad', '--config.augment.pad=1', '--config.augment.flip=False',
    '--config.crop_fraction=1.0', '--config.loader_threads=2', '--config.batch_size=50',
    '--config.total_steps=100', '--config.eval_steps=25',
)  # fmt: skip
WAYS = {
    'from scratch': ('--config.init.weights=',),
    'all parameters': (),
    'all parameters, `optimizer.layer_decay=0.8`': ('--config.optimizer.layer_decay=0.8',),
    '`frozen=entry_flow,middle_flow`': ('--config.frozen=entry_flow,middle_flow',),
    '`frozen=trunk` (linear probe)': ('--config.frozen=trunk',),
}


def main(weights: str, data: str, runs: str) -> None:
    """Trains the runs that are not finished, and prints the table."""
    results = []
    for rate in LEARNING_RATES:
        for seed in SEEDS:
            for number, (way, settings) in enumerate(WAYS.items()):
                workdir = pathlib.Path(runs, f'{number}-{rate}-{seed}')
                args = [
                    *COMMON,
                    f'--config.init.weights={weights}',
                    f'--config.dataset.data_dir={data}',
                    *settings,
                    f'--config.schedule.learning_rate={rate}',
                    f'--config.seed={seed}',
                    f'--workdir={workdir}',
                ]
                if not (workdir / 'checkpoints' / '100').exists():
                    train(args)
                last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
                results.append({'way': way, 'learning_rate': rate, 'seed': seed, **last})
    text = ''.join(json.dumps(result) + '\n' for result in results)
    HERE.joinpath(f'{pathlib.Path(runs).name}.jsonl').write_text(text)
    print('| top-1, % | ' + ' | '.join(f'learning rate {rate}' for rate in LEARNING_RATES) + ' |')
    print('|---' * (1 + len(LEARNING_RATES)) + '|')
    for way in WAYS:
        cells = [cell(results, way, rate) for rate in LEARNING_RATES]
        print(f'| {way} | ' + ' | '.join(cells) + ' |')


def train(args: list[str]) -> None:
    """Runs one training; its output goes to the terminal."""
    command = [sys.executable, '-m', 'xception_flax.main', *args]
    subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=sys.stderr)


def cell(results: list[dict], way: str, rate: float) -> str:
    """Mean and extremes over the seeds."""
    found = [100 * r['top1'] for r in results if (r['way'], r['learning_rate']) == (way, rate)]
    return f'{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})'


if __name__ == '__main__':
    program.run(main, alone=True, arguments='WEIGHTS IMAGES FOLDER')
