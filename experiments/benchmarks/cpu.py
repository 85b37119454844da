"""Xception on CPU, 299x299, float32: this project beside Keras and PyTorch.

  pip install -e '.[bench]' && python -m experiments.benchmarks.cpu --output=cpu.json

Each has a process of its own, and they take turns: some calls of the first, some of the second, and
so on, in several rounds. The results are medians over the turns. Nothing else should run on the
machine. Libraries that are not installed are left out.
"""

import os
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns
from experiments.benchmarks.networks import CONTENDERS
from xception_flax.runtime import program

flags.DEFINE_list('batches', ['4', '16'], 'Images per batch.')
flags.DEFINE_multi_enum(
    'task', ['training', 'inference'], ['training', 'inference'], 'What to measure.'
)
turns.define_flags(CONTENDERS)
flags.adopt_module_key_flags(turns)


def main() -> None:
    """Measures by the flags."""
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}  # for the contenders
    values, console = flags.FLAGS, Console()
    names, versions = turns.entrants(CONTENDERS, console)
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions}
    for task in values.task:
        chosen = [n for n in names if n != 'unfolded' or task == 'inference']
        results[task] = {batch: _measure(task, int(batch), chosen) for batch in values.batches}
        heads = [head for b in values.batches for head in (f'batch {b}: images/s', 'first call, s')]
        table = Table('', *heads, title=f'{task}, {turns.machine()}')
        for name in chosen:
            row = []
            for batch in values.batches:
                found = results[task][batch][name]
                row += [f'{found["images_per_second"]:.2f}', f'{found["first_call"]:.1f}']
            table.add_row(CONTENDERS[name][0], *row)
        console.print(table)
    turns.publish(results, console)


def _measure(task: str, batch: int, names: list[str]) -> dict[str, dict[str, Any]]:
    module = 'experiments.benchmarks.networks'
    arguments = {name: (name, task, batch) for name in names}
    return {
        name: {
            'images_per_second': contender.rate(),
            'turns': contender.turns,
            **contender.facts,
        }
        for name, contender in turns.take(module, arguments, batch).items()
    }


if __name__ == '__main__':
    program.run(main, alone=True)
