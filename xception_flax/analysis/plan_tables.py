"""Plans as tables on a terminal, and as JSON."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from xception_flax.analysis.cost import Cost
from xception_flax.analysis.plans import Plan, Step


def as_dict(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""

    def step(found: Step) -> dict[str, Any]:
        result = {'memory': found.needed, 'fits': found.cost is not None, 'advice': found.advice}
        if found.cost is not None:
            seconds, bound = plan.bound(found.cost)
            result |= {
                'images': found.images,
                'arguments': found.cost.arguments,
                'temporaries': found.cost.temporaries,
                'flops': found.cost.flops,
                'bytes': found.cost.bytes,
                'collective_bytes': dict(found.cost.collectives),
                'estimated_cycles': found.cost.total_cycles,
                'without_estimate': list(found.cost.unknown),
                'estimated_cycles_by_stage': dict(found.cost.cycles_by(0)),
                'estimated_cycles_by_kind': dict(found.cost.cycles_by(1)),
                'estimated_seconds': plan.seconds(found.cost),
                'estimated_images_per_second': found.images / plan.seconds(found.cost),
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


def print_plans(plans: dict[str, Plan]) -> None:
    """Prints the plans side by side."""
    console = Console(highlight=False)
    for plan in plans.values():
        each = plan.config.batch_size / plan.slice.chips
        console.print(
            f'{plan.config.model} on {plan.slice.name}: {plan.slice.chips} chips, '
            f'{plan.parameters:,} parameters, {plan.config.dtype}, '
            f'{plan.config.batch_size:,} images per step, {each:g} per chip'
        )
    for kind in ('training', 'evaluation'):
        found = {name: getattr(plan, kind) for name, plan in plans.items()}
        heads = [plan.config.model for plan in plans.values()]
        table = Table(f'{kind} step, per chip', *heads, box=box.SIMPLE_HEAD, title_justify='left')
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


def figures(plan: Plan, step: Step) -> list[tuple[str, str]]:
    """The rows of a step: label and text."""
    chip = plan.slice.chip
    free = chip.memory - step.needed
    rows = [
        ('memory', f'{step.needed / 2**30:.2f} of {chip.memory / 2**30:.0f} GiB'),
        ('', f'{free / 2**30:.2f} GiB free' if step.cost else 'does not fit'),
    ]
    if step.cost is None:
        return rows
    return rows + _costs(plan, step.cost, step.images)


def _costs(plan: Plan, cost: Cost, images: float) -> list[tuple[str, str]]:
    seconds, bound = plan.bound(cost)
    estimate = plan.seconds(cost)
    rows = [
        ('  arguments', f'{cost.arguments / 2**30:.2f} GiB'),
        ('  temporaries', f'{cost.temporaries / 2**30:.2f} GiB'),
        ('images at once, on all chips', f'{images:,.0f}'),
        ('operations', f'{cost.flops / 1e12:.2f} TFLOP'),
        ('memory traffic', f'{cost.bytes / 1e9:.1f} GB'),
        *((kind, f'{size / 1e6:.1f} MB') for kind, size in cost.collectives.items()),
        ('roofline', f'{seconds * 1e3:.1f} ms, by {bound}'),
        ('  that is', f'{images / seconds:,.0f} images/s on all chips'),
        ('estimate of the compiler', f'{cost.total_cycles / 1e6:.1f} M cycles'),
        ('  at its clock', f'{estimate * 1e3:.1f} ms'),
        ('  that is', f'{images / estimate:,.0f} images/s on all chips'),
    ]
    if cost.unknown:
        rows.append(('  without those of', ', '.join(cost.unknown)))
    for what, title in ((1, 'cycles by kind'), (0, 'cycles by stage')):
        rows.append((title, ''))
        for name, cycles in cost.cycles_by(what):
            fraction = cycles / cost.total_cycles
            if fraction >= 0.005:
                rows.append((f'  {name}', f'{cycles / 1e6:.1f} M, {fraction:4.0%}'))
    return rows
