"""Training of Xception at 299x299 on the machine's device: this project beside PyTorch.

  python -m experiments.benchmarks.accelerator --batch=128 --output=accelerator.json

This project trains in bfloat16 on all TPU chips, on the first GPU (or CUDA_VISIBLE_DEVICES), or on
the CPU. PyTorch trains timm's network, if it has a GPU: channels last, compiled, AMP in bfloat16.
Each has a process of its own, and they take turns. Utilisation is the model's FLOPs (three times
those of a forward pass) as a fraction of the devices' bfloat16 peak.
"""

import os
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns
from experiments.benchmarks.networks import CONTENDERS, SIZE
from xception_flax import create_model
from xception_flax.runtime import program
from xception_flax.training import flops

flags.DEFINE_integer('batch', 128, 'Images per batch.', lower_bound=1)
turns.define_flags(('ours', 'pytorch'))
flags.adopt_module_key_flags(turns)


def main() -> None:
    """Measures by the flags."""
    values, console = flags.FLAGS, Console()
    # For the contenders, which share one GPU.
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    names, versions = turns.entrants(CONTENDERS, console)
    if 'pytorch' in names and not _torch_has_gpu():
        names.remove('pytorch')
        console.print(f'{CONTENDERS["pytorch"][0]}: not measured: it has no GPU here')
    arguments: dict[str, tuple] = {name: (name, 'training', values.batch) for name in names}
    if 'ours' in arguments:
        arguments['ours'] += ('dtype=bfloat16',)
    contenders = turns.take('experiments.benchmarks.networks', arguments, values.batch)
    work = flops.training_flops(create_model('xception'), SIZE)  # per image
    results: dict[str, Any] = {'machine': turns.machine(), 'versions': versions}
    results['batch'] = values.batch
    table = Table('', 'device', 'images/s', 'utilisation', 'GiB', 'first call, s')
    for name, contender in contenders.items():
        rate, facts = contender.rate(), contender.facts
        peak = flops.peak(facts['device'])
        used = work * rate / (peak * facts['devices']) if peak else None
        results[name] = {'images_per_second': rate, 'utilisation': used, **facts}
        results[name]['turns'] = contender.turns
        table.add_row(
            CONTENDERS[name][0],
            f'{facts["devices"]} x {facts["device"]}',
            f'{rate:.1f}',
            f'{used:.1%}' if used else 'no peak known',
            f'{facts["memory"] / 2**30:.2f}',
            f'{facts["first_call"]:.0f}',
        )
    console.print(table)
    turns.publish(results, console)


def _torch_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == '__main__':
    program.run(main, alone=True)
