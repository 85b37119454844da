"""Makes tables and curves of fine-tuning on photographs of clothing, from clothing.jsonl.

    python -m experiments.finetune.clothing_results

Prints a table for each machine and image size, and draws clothing.png.
"""

import itertools
import json
import pathlib
import statistics
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reporting import figures
from experiments.reporting.tables import Table
from xception_flax.runtime import program

FILE = pathlib.Path(__file__).with_name('clothing.jsonl')
NAMES = {'keras': 'Keras', 'ours': 'xception_flax'}

Result = dict[str, Any]


def main() -> None:
    """Prints the tables, and draws the curves."""
    results = read()
    for (machine, size, epochs), found in grouped(results).items():
        print(table(f'{size} pixels, {epochs} epochs, {machine}', found).markdown(), flush=True)
    draw(results).savefig(FILE.with_suffix('.png'), dpi=160)


def read() -> list[Result]:
    """The results so far."""
    if not FILE.exists():
        return []
    return [json.loads(line) for line in FILE.read_text('utf-8').splitlines()]


def add(result: Result) -> None:
    """Adds the result of a run."""
    with FILE.open('a', encoding='utf-8') as file:
        file.write(json.dumps(result) + '\n')


def identity(result: Result) -> tuple[Any, ...]:
    """What distinguishes a run from the others."""
    return tuple(result[key] for key in ('who', 'recipe', 'seed', 'size', 'epochs', 'machine'))


def grouped(results: list[Result]) -> dict[tuple[str, int, int], list[Result]]:
    """The results of one machine, image size and number of epochs, under these."""
    found: dict[tuple[str, int, int], list[Result]] = {}
    for result in results:
        key = result['machine'], result['size'], result['epochs']
        found.setdefault(key, []).append(result)
    return found


def table(title: str, results: list[Result]) -> Table:
    """Means over the seeds, with the lowest and the highest where there are several."""
    rows = []
    for (recipe, who), runs in _by_recipe(results):
        rows.append(
            [
                recipe,
                NAMES[who],
                str(len(runs)),
                _spread([100 * run['validation'][-1] for run in runs]),
                _spread([100 * run['test'] for run in runs]),
                f'{statistics.mean(run["seconds_per_epoch"] for run in runs):.3g}',
                f'{statistics.mean(run["seconds"] for run in runs):.0f}',
                f'{max(run["memory"] for run in runs) / 1e9:.1f} GB',
            ]
        )
    header = (
        'recipe', 'by', 'seeds', 'validation, %', 'test, %', 's per epoch', 's in all',
        'memory of the host',
    )  # fmt: skip
    return Table(title, header, rows)


def draw(results: list[Result]) -> Figure:
    """Validation accuracy by epochs, a panel for each machine and image size."""
    groups = grouped(results)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(4.6 * len(groups), 4.2), layout='constrained')
        panels = figure.subplots(1, len(groups), squeeze=False)[0]
        recipes = dict.fromkeys(result['recipe'] for result in results)
        colours = dict(zip(recipes, figures.COLOURS, strict=False))
        for axes, ((machine, size, epochs), found) in zip(panels, groups.items(), strict=True):
            for (recipe, who), runs in _by_recipe(found):
                curves = list(zip(*(run['validation'] for run in runs), strict=True))
                means = [100 * statistics.mean(values) for values in curves]
                steps = range(1, epochs + 1)
                axes.plot(
                    steps, means, '-' if who == 'ours' else '--', color=colours[recipe],
                    marker='.', label=f'{recipe}, {NAMES[who]}',
                )  # fmt: skip
            axes.set(
                xlabel='epochs', ylabel='validation accuracy, %',
                title=f'{size} pixels, {machine}',
            )  # fmt: skip
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
        lines, names = panels[0].get_legend_handles_labels()
        figure.legend(lines, names, loc='outside lower center', ncols=2, frameon=False, fontsize=9)
    return figure


def _by_recipe(results: list[Result]) -> list[tuple[tuple[str, str], list[Result]]]:
    def key(result: Result) -> tuple[str, str]:
        return result['recipe'], result['who']

    order = list(dict.fromkeys(map(key, results)))
    found = sorted(results, key=lambda result: order.index(key(result)))
    return [(name, list(runs)) for name, runs in itertools.groupby(found, key)]


def _spread(values: list[float]) -> str:
    mean = f'{statistics.mean(values):.1f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.1f} to {max(values):.1f})'


if __name__ == '__main__':
    program.run(main, alone=True)
