r"""Compiles a run for a TPU slice that is not there, and says what it would need and take.

  pip install -e '.[tpu]'
  python -m xception_flax.plan --config=configs/imagenet.py --topology=v5e:4x4
  python -m xception_flax.plan --config=configs/imagenet.py --topology=v5p:2x2x2 \
      --config.batch_size=2048 --compare=configs/imagenet_inception_v3.py

The training and the evaluation step are compiled by the real compiler, on any machine and for as
many chips as you like; nothing is computed, and no data is needed. Memory is what the compiler has
laid out. All else is of the pictures that are worked on at once, a micro-batch or one crop of each,
and by estimate: memory traffic is XLA's, cycles are the compiler's own figures for each operation,
added up. They are no measurement, and leave out what overlaps and what waits, such as collectives.
"""

import json
from typing import TYPE_CHECKING, Any

from absl import flags

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

if TYPE_CHECKING:
    from xception_flax.planning.cost import Cost
    from xception_flax.planning.steps import Plan, Step

flags.adopt_module_key_flags(program)
flags.DEFINE_string('topology', None, 'The slice: v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:8x8, ...')
flags.DEFINE_string('compare', None, 'Another config file, to be set beside this one.')
flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')


def main() -> None:
    """Plans by the flags."""
    values = flags.FLAGS
    if not values.topology:
        raise UserError('--topology is missing, such as --topology=v5e:4x4; see --help')

    import jax  # after the flags: their mistakes are told at once

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to those who compute
    # What is compiled for a TPU loads on a TPU only.
    jax.config.update('jax_enable_compilation_cache', False)
    from xception_flax.config import reading
    from xception_flax.planning import chips, steps

    configs = {'config': values.config}
    if values.compare:
        configs['compare'] = reading.read_file(values.compare)
    where = chips.describe(values.topology)
    plans = {name: steps.make(config, where) for name, config in configs.items()}
    if values.json:
        print(json.dumps({name: as_dict(plan) for name, plan in plans.items()}))
    else:
        print_tables(plans)


def as_dict(plan: 'Plan') -> dict[str, Any]:
    """What `--json` prints of a plan."""

    def step(found: 'Step') -> dict[str, Any]:
        result = {'memory': found.needed, 'fits': found.cost is not None, 'advice': found.advice}
        if found.cost is not None:
            seconds, bound = plan.bound(found.cost)
            result |= {
                'pictures': found.pictures,
                'arguments': found.cost.arguments,
                'temporaries': found.cost.temporaries,
                'flops': found.cost.flops,
                'bytes': found.cost.bytes,
                'collective_bytes': dict(found.cost.collectives),
                'estimated_cycles': found.cost.total_cycles,
                'estimated_cycles_by_stage': dict(found.cost.cycles_by(0)),
                'estimated_cycles_by_kind': dict(found.cost.cycles_by(1)),
                'estimated_seconds': plan.seconds(found.cost),
                'estimated_images_per_second': found.pictures / plan.seconds(found.cost),
                'roofline_seconds': seconds,
                'bound_by': bound,
            }
        return result

    return {
        'model': plan.config.model,
        'topology': plan.slice.name,
        'chips': plan.slice.chips,
        'devices': plan.slice.mesh.size,
        'batch_size': plan.config.batch_size,
        'accumulation': plan.config.accumulation,
        'dtype': plan.config.dtype,
        'parameters': plan.parameters,
        'memory_per_chip': plan.slice.chip.memory,
        'training': step(plan.training),
        'evaluation': step(plan.evaluation),
    }


def print_tables(plans: dict[str, 'Plan']) -> None:
    """Prints what a person reads, one column a plan."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for plan in plans.values():
        each = plan.config.batch_size / plan.slice.chips
        console.print(
            f'{plan.config.model} on {plan.slice.name}: {plan.slice.chips} chips, '
            f'{plan.parameters:,} parameters, {plan.config.dtype}, '
            f'{plan.config.batch_size:,} pictures a step, {each:g} a chip'
        )
    for kind in ('training', 'evaluation'):
        found = {name: getattr(plan, kind) for name, plan in plans.items()}
        heads = [plan.config.model for plan in plans.values()]
        table = Table(f'{kind} step, each chip', *heads, box=box.SIMPLE_HEAD, title_justify='left')
        for column in table.columns[1:]:
            column.justify = 'right'
        rows: dict[str, list[str]] = {}
        for place, (name, step) in enumerate(found.items()):
            for label, text in figures(plans[name], step):
                rows.setdefault(label, [''] * len(found))[place] = text
        for label, cells in rows.items():
            table.add_row(label, *cells)
        console.print(table)
        for name, step in found.items():
            if step.advice:
                console.print(f'{plans[name].config.model}, {kind}: {step.advice}')


def figures(plan: 'Plan', step: 'Step') -> list[tuple[str, str]]:
    """The rows of a step's column: what, and how much in words."""
    chip = plan.slice.chip
    free = chip.memory - step.needed
    rows = [
        ('memory', f'{step.needed / 2**30:.2f} of {chip.memory / 2**30:.0f} GiB'),
        ('', f'{free / 2**30:.2f} GiB are free' if step.cost else 'does not fit'),
    ]
    if step.cost is None:
        return rows
    return rows + _costs(plan, step.cost, step.pictures)


def _costs(plan: 'Plan', cost: 'Cost', pictures: float) -> list[tuple[str, str]]:
    seconds, bound = plan.bound(cost)
    estimate = plan.seconds(cost)
    rows = [
        ('  arguments', f'{cost.arguments / 2**30:.2f} GiB'),
        ('  temporaries', f'{cost.temporaries / 2**30:.2f} GiB'),
        ('pictures at once, in all', f'{pictures:,.0f}'),
        ('operations', f'{cost.flops / 1e12:.2f} TFLOP'),
        ('memory traffic', f'{cost.bytes / 1e9:.1f} GB'),
        *((kind, f'{size / 1e6:.1f} MB') for kind, size in cost.collectives.items()),
        ('roofline', f'{seconds * 1e3:.1f} ms, by {bound}'),
        ('  that is', f'{pictures / seconds:,.0f} images/s in all'),
        ('estimated by the compiler', f'{cost.total_cycles / 1e6:.1f} M cycles'),
        ('  at its clock', f'{estimate * 1e3:.1f} ms'),
        ('  that is', f'{pictures / estimate:,.0f} images/s in all'),
    ]
    for what, title in ((1, 'cycles by kind'), (0, 'cycles by stage')):
        rows.append((title, ''))
        for name, cycles in cost.cycles_by(what):
            share = cycles / cost.total_cycles
            if share >= 0.005:
                rows.append((f'  {name}', f'{cycles / 1e6:.1f} M, {share:4.0%}'))
    return rows


if __name__ == '__main__':
    program.run(main, needs=('config',), alone=True)
