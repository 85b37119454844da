"""From JPEG files to training batches of 299x299: this project beside tf.data and torchvision.

  pip install -e '.[bench]' && python -m experiments.benchmarks.input --output=input.json
  python -m experiments.benchmarks.input --data=/data/train    # your own: folders of JPEG files

All apply the same augmentation: a random crop (5 to 100 % of the area), bilinear resizing, a random
horizontal flip, uint8; besides, this project with all that `configs/imagenet.py` does. Each has a
process of its own, and they take turns. The measure is images per CPU second; wall time would
mislead, as some read ahead during the turns of others. The system caches the files in the first
turn. Libraries that are not installed are left out.
"""

import pathlib
import tempfile
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import loaders, turns
from experiments.benchmarks.loaders import CONTENDERS
from xception_flax.runtime import program

flags.DEFINE_string(
    'data', None, 'Folder of class folders of *.jpg; by default 512 files are made.'
)
flags.DEFINE_integer('batch', 128, 'Images per batch.', lower_bound=1)
turns.define_flags(CONTENDERS)
flags.adopt_module_key_flags(turns)


def main() -> None:
    """Measures by the flags."""
    values, console = flags.FLAGS, Console()
    names, versions = turns.entrants(CONTENDERS, console)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(values.data or f'{made}/train').expanduser().absolute()
        if not values.data:
            loaders.make_images(folder, 512)
        arguments = {name: (name, folder, values.batch) for name in names}
        module = 'experiments.benchmarks.loaders'
        contenders = turns.take(module, arguments, values.batch)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions}
    table = Table('', 'images / CPU second', title=turns.machine())
    for name, contender in contenders.items():
        results[name] = {'images_per_cpu_second': [turn['cpu'] for turn in contender.turns]}
        table.add_row(CONTENDERS[name][0], f'{contender.rate("cpu"):.0f}')
    console.print(table)
    turns.publish(results, console)


if __name__ == '__main__':
    program.run(main, alone=True)
