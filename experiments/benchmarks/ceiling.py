"""The most that Python lets pass: training batches whose images need no decoding and no resizing.

  python -m experiments.benchmarks.ceiling --output=ceiling.json

Images of 299x299 come from memory, so what remains is Python's own work and the copying of bytes:
by threads of the process that trains (0 loader processes), whose lock bounds it however many cores
there are; and by 1 and 2 processes. Then the process that trains only hands batches on: the CPU
time of all its threads per image says how many images a host with enough cores could pass.
"""

from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns
from experiments.benchmarks.stubbed import BATCHES
from xception_flax.runtime import program

LOADERS = {'threads, 0 processes': 0, '1 process': 1, '2 processes': 2}
flags.DEFINE_integer('batch', 128, 'Images per batch.', lower_bound=1)
turns.define_flags()
flags.adopt_module_key_flags(turns)


def main() -> None:
    """Measures by the flags."""
    batch, console = flags.FLAGS.batch, Console()
    versions = turns.installed({'xception_flax': ('grain', 'numpy')}, console)
    arguments = {title: (count, batch) for title, count in LOADERS.items()}
    contenders = turns.take('experiments.benchmarks.stubbed', arguments, batch * BATCHES)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions, 'batch': batch}
    table = Table('', 'images / s', 'CPU us / image of the training process', title=turns.machine())
    for title, contender in contenders.items():
        results[title] = contender.turns
        cost = 1e6 / contender.rate('cpu')
        table.add_row(title, f'{contender.rate():,.0f}', f'{cost:.1f}')
    console.print(table)
    turns.publish(results, console)


if __name__ == '__main__':
    program.run(main, alone=True)
