"""Fine-tunes Xception on photographs of clothing, by Keras and by this project, side by side.

    git clone https://github.com/alexeygrigorev/clothing-dataset-small  # CC0, 106 MB
    python experiments/finetune/clothing.py clothing-dataset-small WEIGHTS FOLDER

WEIGHTS is a file that Keras and we read, with ImageNet weights. FOLDER keeps the runs, and finished
runs in it are not repeated. Keras and ours take turns, so that both meet the same machine. Results
go to clothing.jsonl beside this file, and the table to the screen; README.md has what was measured.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from absl import flags

from xception_flax.runtime import program, writers

flags.DEFINE_list('seeds', ['0', '1', '2'], 'Of the runs of each recipe.')
flags.DEFINE_integer('epochs', 10, 'Of each run, over all stages.', lower_bound=2)
flags.DEFINE_integer('size', 150, 'Side of the images.', lower_bound=71)

HERE = pathlib.Path(__file__).parent
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
    """Trains what is not finished, and prints the table."""
    values = flags.FLAGS
    runs = pathlib.Path(folder).absolute()
    runs.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in map(int, values.seeds):
        for recipe in RECIPES:
            for who in ('keras', 'ours'):
                if who == 'keras' and recipe not in KERAS:
                    continue
                name = f'{who}-{recipe.replace(" ", "-")}-{values.size}-{values.epochs}-{seed}'
                file = runs / f'{name}.json'
                if not file.exists():
                    train = train_keras if who == 'keras' else train_ours
                    train(recipe, seed, images, weights, runs / name, file)
                results.append(json.loads(file.read_text()))
                HERE.joinpath('clothing.jsonl').write_text(
                    ''.join(json.dumps(result) + '\n' for result in results)
                )
                print_table(results)


def train_keras(
    recipe: str, seed: int, images: str, weights: str, workdir: pathlib.Path, file: pathlib.Path
) -> None:
    """Trains by Keras, and writes what was measured."""
    values = flags.FLAGS
    out = workdir.with_suffix('.out')
    seconds, memory = run(
        'experiments/finetune/clothing_keras.py', images, weights, str(out), f'--recipe={recipe}',
        f'--epochs={values.epochs}', f'--size={values.size}', f'--seed={seed}',
    )  # fmt: skip
    write(file, 'keras', recipe, seed, seconds, memory, json.loads(out.read_text()))


def train_ours(
    recipe: str, seed: int, images: str, weights: str, workdir: pathlib.Path, file: pathlib.Path
) -> None:
    """Trains the stages one after the other, and writes what was measured."""
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
        cwd=HERE.parents[1], check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    images_per_epoch = sum(1 for _ in pathlib.Path(images, 'train').rglob('*.jpg'))
    measured = {
        'validation': validation,
        'test': float(test.rpartition('top-1 ')[2].split()[0]),
        'seconds_per_epoch': statistics.mean(images_per_epoch / speed for speed in speeds),
    }
    write(file, 'ours', recipe, seed, seconds, memory, measured)


def run(*command: str) -> tuple[float, float]:
    """Runs a program of Python to its end; gives its seconds and the most memory, in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=HERE.parents[1], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'error: {command} ended with {os.waitstatus_to_exitcode(status)}')
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def write(
    file: pathlib.Path, who: str, recipe: str, seed: int, seconds: float, memory: float,
    measured: dict,
) -> None:  # fmt: skip
    """Writes the results of a run."""
    values = flags.FLAGS
    facts = {
        'who': who, 'recipe': recipe, 'seed': seed, 'size': values.size, 'epochs': values.epochs,
        'seconds': seconds, 'memory': memory,
    }  # fmt: skip
    file.write_text(json.dumps(facts | measured))


def print_table(results: list[dict]) -> None:
    """Means over the seeds, with the lowest and the highest."""
    print('| recipe | by | validation, % | test, % | s per epoch | s in all | memory |')
    print('|---|---|---|---|---|---|---|', flush=True)
    for recipe, who in dict.fromkeys((result['recipe'], result['who']) for result in results):
        found = [r for r in results if (r['recipe'], r['who']) == (recipe, who)]
        cells = [
            spread([100 * r['validation'][-1] for r in found]),
            spread([100 * r['test'] for r in found]),
            f'{statistics.mean(r["seconds_per_epoch"] for r in found):.1f}',
            f'{statistics.mean(r["seconds"] for r in found):.0f}',
            f'{max(r["memory"] for r in found) / 1e9:.2f} GB',
        ]
        print(f'| {recipe} | {who} | {" | ".join(cells)} |', flush=True)


def spread(values: list[float]) -> str:
    """Mean, lowest and highest."""
    return f'{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})'


if __name__ == '__main__':
    program.run(main, alone=True, arguments='IMAGES WEIGHTS FOLDER')
