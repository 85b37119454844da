"""Time and memory of Xception's training step over batch, image, width and devices; float32, CPU.

  python -m experiments.benchmarks.growth --output=growth.json --image=growth.png

The base is a batch of four images of 299x299 on one device; each row changes one quantity. The row
of devices has a batch of eight, and its devices are simulated on the same cores. The points of a
row take turns, each in a process of its own. Memory is the peak of the process, compilation
included. Nothing else should run on the machine.
"""

import os
import pathlib
import statistics
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns
from xception_flax.runtime import program

BATCH = 4
# By name: label of the axis, batch size (None if it is what changes), setting, values.
ROWS: dict[str, tuple[str, int | None, str, tuple[float, ...]]] = {
    'batch': ('images per batch', None, '', (1, 2, 4, 8, 16)),
    'size': ('side of an image, pixels', BATCH, 'image_size', (107, 149, 203, 299, 427)),
    'width': ('width of the network', BATCH, 'xception.width', (0.25, 0.5, 1.0, 1.5)),
    'devices': ('simulated devices', 8, 'devices', (1, 2, 4, 8)),
}
COLOUR = '#1f6fb2'

flags.DEFINE_multi_enum('row', list(ROWS), list(ROWS), 'Quantities to change.')
flags.DEFINE_string('image', None, 'A PNG or SVG file for the curves.')
turns.define_flags()
flags.adopt_module_key_flags(turns)


def main() -> None:
    """Measures by the flags."""
    os.environ['JAX_PLATFORMS'] = 'cpu'  # for the contenders
    values, console = flags.FLAGS, Console()
    versions = turns.installed({'xception_flax': ('jax', 'flax')}, console)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions}
    for row in values.row:
        title, batch, setting, points = ROWS[row]
        arguments = {}
        for value in points:
            changed = [f'{setting}={value}'] if setting else []
            arguments[str(value)] = ('ours', 'training', batch or value, *changed)
        contenders = turns.take('experiments.benchmarks.networks', arguments, 1)
        table = Table(title, 's / step', 'GiB', title=turns.machine())
        results[row] = []
        for value, contender in zip(points, contenders.values(), strict=True):
            steps = [1 / turn['wall'] for turn in contender.turns]
            memory = contender.facts['memory']
            results[row].append({'value': value, 'seconds': steps, 'memory': memory})
            table.add_row(f'{value:g}', f'{statistics.median(steps):.3f}', f'{memory / 2**30:.2f}')
        console.print(table)
    turns.publish(results, console)
    if values.image:
        draw(results, values.row, pathlib.Path(values.image))


def draw(results: dict[str, Any], rows: list[str], file: pathlib.Path) -> None:
    """Draws time and memory of a step over each changed quantity."""
    figure = Figure(figsize=(3 * len(rows), 5.4), layout='constrained')
    figure.suptitle(f'Training step of Xception, float32, {results["machine"]}')
    grid = figure.subplots(2, len(rows), squeeze=False, sharex='col')
    for column, row in enumerate(rows):
        points = results[row]
        where = [point['value'] for point in points]
        times = [sorted(point['seconds']) for point in points]
        above, below = grid[:, column]
        above.plot(where, [statistics.median(t) for t in times], 'o-', color=COLOUR)
        above.fill_between(where, [t[0] for t in times], [t[-1] for t in times], alpha=0.2)
        below.plot(where, [point['memory'] / 2**30 for point in points], 'o-', color=COLOUR)
        below.set_xlabel(ROWS[row][0])
        below.set_xticks(where, [f'{value:g}' for value in where])
        for axes in (above, below):
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
            axes.grid(alpha=0.3)
            axes.spines[['top', 'right']].set_visible(False)
    grid[0, 0].set_ylabel('seconds per step')
    grid[1, 0].set_ylabel('peak memory, GiB')
    figure.savefig(file, dpi=120)


if __name__ == '__main__':
    program.run(main, alone=True)
