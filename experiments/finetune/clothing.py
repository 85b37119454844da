"""Fine-tunes Xception on photographs of clothing, by Keras and by this project, side by side.

    git clone https://github.com/alexeygrigorev/clothing-dataset-small  # CC0, 106 MB
    python -m experiments.finetune.clothing clothing-dataset-small WEIGHTS FOLDER --machine=mine

WEIGHTS is a file that Keras and we read, with ImageNet weights. FOLDER keeps the runs. Keras and
ours take turns, so that both meet the same machine. Results are added to clothing.jsonl beside this
file, and runs that it holds are not repeated; `python -m experiments.finetune.clothing_results`
makes the tables and the curves.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import flags

from experiments.finetune import clothing_results
from xception_flax.runtime import program, writers

flags.DEFINE_list('seeds', ['0', '1', '2'], 'Of the runs of each recipe.')
flags.DEFINE_list('recipes', None, 'Recipes to train; all by default.')
flags.DEFINE_integer('epochs', 10, 'Of each run, over all stages.', lower_bound=2)
flags.DEFINE_integer('size', 150, 'Side of the images.', lower_bound=71)
flags.DEFINE_string('machine', None, 'What the results call this machine.', required=True)

ROOT = pathlib.Path(__file__).parents[2]
COMMON = (
    '--config=configs/finetune.py', '--config.dataset.eval_split=validation',
    '--config.augment.crop=none', '--config.crop_fraction=1.0', '--config.optimizer.name=adamw',
    '--config.optimizer.weight_decay=0.0', '--config.optimizer.clip_norm=0.0',
    '--config.schedule.name=constant', '--config.schedule.warmup_steps=1',
    '--config.ema_decay=0.0', '--config.eval_epochs=1.0',
    '--config.keep_last=1', '--config.keep_best=0',
)  # fmt: skip
PLAIN = ('--config.augment.flip=False', '--config.xception.dropout=0.0')
SPLIT = ('--config.augment.flip=True', '--config.xception.dropout=0.2')
PROBE = ('--config.frozen=trunk', '--config.schedule.learning_rate=1e-3')
UPPER = (
    '--config.frozen=entry_flow,middle_flow', '--config.frozen_statistics=True',
    '--config.schedule.learning_rate=1e-5',
)  # fmt: skip
LAYERWISE = (
    '--config.optimizer.layer_decay=0.7', '--config.frozen_statistics=True',
    '--config.schedule.learning_rate=3e-4',
)  # fmt: skip
# Stages of each recipe: its part of the epochs, and its settings. Keras has the first two.
RECIPES = {
    'probe': ((1.0, (*PLAIN, *PROBE)),),
    'two stages': ((0.5, (*SPLIT, *PROBE)), (0.5, (*SPLIT, *UPPER))),
    'layer-wise rates': ((1.0, (*SPLIT, *LAYERWISE)),),
}
KERAS = ('probe', 'two stages')


def main(images: str, weights: str, folder: str) -> None:
    """Trains what is not finished, and prints the tables."""
    values = flags.FLAGS
    runs = pathlib.Path(folder).absolute()
    runs.mkdir(parents=True, exist_ok=True)
    finished = [clothing_results.identity(result) for result in clothing_results.read()]
    for seed in map(int, values.seeds):
        for recipe in values.recipes or RECIPES:
            for who in ('keras', 'ours'):
                if who == 'keras' and recipe not in KERAS:
                    continue
                result = {
                    'who': who, 'recipe': recipe, 'seed': seed, 'size': values.size,
                    'epochs': values.epochs, 'machine': values.machine,
                }  # fmt: skip
                if clothing_results.identity(result) in finished:
                    continue
                train = train_keras if who == 'keras' else train_ours
                workdir = runs / f'{who}-{recipe.replace(" ", "-")}-{values.size}-{seed}'
                clothing_results.add(result | train(recipe, seed, images, weights, workdir))
                clothing_results.main()


def train_keras(
    recipe: str, seed: int, images: str, weights: str, workdir: pathlib.Path
) -> dict[str, Any]:
    """Trains by Keras; gives what was measured."""
    values = flags.FLAGS
    out = workdir.with_suffix('.json')
    seconds, memory = run(
        '-m', 'experiments.finetune.clothing_keras', images, weights, str(out),
        f'--recipe={recipe}', f'--epochs={values.epochs}', f'--size={values.size}',
        f'--seed={seed}',
    )  # fmt: skip
    return {'seconds': seconds, 'memory': memory, **json.loads(out.read_text())}


def train_ours(
    recipe: str, seed: int, images: str, weights: str, workdir: pathlib.Path
) -> dict[str, Any]:
    """Trains the stages one after the other; gives what was measured."""
    values = flags.FLAGS
    start, head, seconds, memory = weights, True, 0.0, 0.0
    validation, speeds = [], []
    for number, (part, settings) in enumerate(RECIPES[recipe]):
        stage = workdir / str(number)
        more, most = run(
            '-m', 'xception_flax.main', *COMMON, *settings, f'--workdir={stage}',
            f'--config.dataset.data_dir={images}', f'--config.init.weights={start}',
            f'--config.init.new_head={head}', f'--config.image_size={values.size}',
            f'--config.total_epochs={part * values.epochs}', f'--config.seed={seed}',
        )  # fmt: skip
        start, head, seconds, memory = str(stage), False, seconds + more, max(memory, most)
        entries = writers.read(stage / 'metrics.jsonl')
        validation += [entry['top1'] for entry in entries if 'weights' in entry]
        rates = [e['examples_per_second'] for e in entries if 'examples_per_second' in e]
        speeds.append(statistics.median(rates))
    test = subprocess.run(
        [
            sys.executable, '-m', 'xception_flax.evaluate', f'--workdir={start}',
            '--config.dataset.eval_split=test',
        ],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    images_per_epoch = sum(1 for _ in pathlib.Path(images, 'train').rglob('*.jpg'))
    return {
        'seconds': seconds,
        'memory': memory,
        'validation': validation,
        'test': float(test.rpartition('top-1 ')[2].split()[0]),
        'seconds_per_epoch': statistics.mean(images_per_epoch / speed for speed in speeds),
    }


def run(*command: str) -> tuple[float, float]:
    """Runs a program of Python to its end; gives its seconds and the most memory, in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'error: {command} ended with {os.waitstatus_to_exitcode(status)}')
    return time.perf_counter() - began, usage.ru_maxrss * 1024


if __name__ == '__main__':
    program.run(main, alone=True, arguments='IMAGES WEIGHTS FOLDER')
