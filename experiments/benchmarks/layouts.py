"""ImageNet's layouts: how long the index takes, and how many images one reads per CPU second.

  pip install -e '.[bench]' && python -m experiments.benchmarks.layouts --output=layouts.json

The same JPEG files of 500x375 lie in folders, in a tar of tars, in webdataset's tars, in TFRecords
and in ArrayRecord, and are read at random positions, without decoding. Beside them: timm's readers
of folders and of tars of tars, and tf.data, which reads TFRecords in order and shuffles 1,000
examples. Each has a process of its own, and they take turns; the system caches the files in the
first turn.
"""

import pathlib
import tempfile
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import copies, turns
from experiments.benchmarks.readers import CONTENDERS, IMAGES
from xception_flax.runtime import program

flags.DEFINE_integer('images', 10_000, 'Number of images.', lower_bound=1000)
flags.DEFINE_integer('height', 375, 'Height of the images, in pixels.', lower_bound=8)
turns.define_flags(CONTENDERS)
flags.adopt_module_key_flags(turns)


def main() -> None:
    """Measures by the flags."""
    values, console = flags.FLAGS, Console()
    names, versions = turns.entrants(CONTENDERS, console)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions}
    layouts = {name: CONTENDERS[name][2][0] for name in names}
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        copies.make(root, values.images, values.height, {layouts[name] for name in names})
        arguments = {name: (name, root / layouts[name], root / 'index') for name in names}
        contenders = turns.take('experiments.benchmarks.readers', arguments, IMAGES)
    title = f'{values.images:,} images, {turns.machine()}'
    table = Table('', 'images / CPU second', 'index, s per million', title=title)
    for name, contender in contenders.items():
        index = contender.facts['index_seconds'] / values.images * 1e6
        results[name] = {
            'images_per_cpu_second': [turn['cpu'] for turn in contender.turns],
            'index_seconds_per_million': index,
        }
        table.add_row(CONTENDERS[name][0], f'{contender.rate("cpu"):,.0f}', f'{index:.0f}')
    console.print(table)
    turns.publish(results | {'images': values.images, 'height': values.height}, console)


if __name__ == '__main__':
    program.run(main, alone=True)
