"""The kernels for TPU beside XLA's own operations and the chip's limits, by the scheduled code.

  pip install -e '.[tpu]' && python -m experiments.benchmarks.tpu_schedule --output=schedule.json

Each separable convolution of Xception that has kernels is compiled in both forms: with the batch
norm and the ReLU before it and the sums for the batch norm behind it, forward and backward. No TPU
is needed, and nothing is computed. The compiler has no estimate of a kernel: its cycles are the
bundles of instructions that it schedules. Of XLA's operations there are both. The schedule leaves
out waiting for memory, which the estimate has. Nothing can be quicker than the products alone at
the peak of the chip's data sheet, nor than its bytes at the bandwidth there.
"""

import functools
import os
from typing import Any

os.environ |= {'JAX_PLATFORMS': 'cpu'}  # leaves accelerators alone

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import turns
from xception_flax import ops
from xception_flax.analysis import cost, schedule, slices
from xception_flax.base.errors import UserError
from xception_flax.ops import fused, kernels, trial
from xception_flax.runtime import program

# Height, width, channels and features for images of 299x299.
LAYERS = {
    'entry_flow/block1/sepconv1': (147, 147, 64, 128),
    'entry_flow/block1/sepconv2': (147, 147, 128, 128),
    'entry_flow/block2/sepconv1': (74, 74, 128, 256),
    'entry_flow/block2/sepconv2': (74, 74, 256, 256),
    'entry_flow/block3/sepconv1': (37, 37, 256, 728),
    'entry_flow/block3/sepconv2': (37, 37, 728, 728),
    'middle_flow (each of 24)': (19, 19, 728, 728),
    'exit_flow/block1/sepconv2': (19, 19, 728, 1024),
    'exit_flow/sepconv4': (10, 10, 1536, 2048),
}
COLUMNS = {
    'XLA, estimate': 'estimate', 'XLA, code': 'code', 'XLA, bytes': 'bytes',
    'kernels, code': 'kernels', 'forward': 'forward', 'backward': 'backward',
    'kernels, bytes': 'traffic', 'products': 'products',
}  # fmt: skip
flags.DEFINE_string('topology', 'v5e:2x2', 'A slice of the chips to compile for.')
flags.DEFINE_integer('batch', 128, 'Images per chip.', lower_bound=8)
flags.DEFINE_enum('dtype', 'bfloat16', ['bfloat16', 'float32'], 'Type of the features.')
flags.DEFINE_string('layer', '', 'Only layers whose name contains this.')
flags.DEFINE_bool('loops', False, 'Print the loops of each kernel, and the slots that they use.')
flags.DEFINE_string('output', None, 'A JSON file for all numbers.')


def main() -> None:
    """Compiles by the flags."""
    values, console = flags.FLAGS, Console()
    jax.config.update('jax_enable_compilation_cache', False)
    where = slices.describe(values.topology)
    versions = turns.installed({'xception_flax': ('jax', 'libtpu')}, console)
    layers = {name: sides for name, sides in LAYERS.items() if values.layer in name}
    if not layers:
        raise UserError(
            f'--layer={values.layer}: no name contains it; there are {", ".join(LAYERS)}'
        )
    table = Table(
        'million cycles', *COLUMNS, title=f'{values.topology}, {values.batch} images per '
        f'chip, {values.dtype}',
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = 'right'
    results: dict[str, Any] = {'topology': values.topology, 'batch': values.batch}
    results |= {'dtype': values.dtype, 'versions': versions, 'layers': {}}
    for name, sides in layers.items():
        console.print(f'{name} ...')
        found = compare(where, sides, console)
        results['layers'][name] = found
        cells = (found[key] for key in COLUMNS.values())
        table.add_row(name, *('-' if n is None else f'{n / 1e6:.2f}' for n in cells))
    console.print(table)
    turns.publish(results, console)


def compare(where: slices.Slice, sides: tuple[int, ...], console: Console) -> dict[str, Any]:
    """The cycles of both forms of a layer, and the limits of the chip."""
    height, width, channels, features = sides
    n, dtype = flags.FLAGS.batch, jnp.dtype(flags.FLAGS.dtype)
    device = jax.sharding.SingleDeviceSharding(where.mesh.devices.flat[0])

    def array(shape: tuple[int, ...], kind: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=device)

    x, y = (array((n, height, width, c), dtype) for c in (channels, features))
    small = array((channels,)), array((channels,)), array((3, 3, 1, channels))
    operands = x, *small, array((1, 1, channels, features))
    gradients = y, array((2, features))
    per_byte = where.chip.clock / where.chip.bandwidth
    xla, code = compiled(plain, operands, gradients)
    found: dict[str, Any] = dict.fromkeys(COLUMNS.values())
    found['estimate'], found['bytes'] = xla.total_cycles, xla.bytes * per_byte
    found['code'] = sum(each.cycles for each in code.values())
    products = 3 * 2 * n * height * width * channels * features
    found['products'] = products / where.chip.flops * where.chip.clock
    memory = fused.MEMORY[where.mesh.devices.flat[0].device_kind]
    step = kernels.best_step(x.shape, features, fused.IMAGES, dtype.itemsize, memory)
    if step is None:
        return found
    how = fused.Launch(step, None)
    _, code = compiled(functools.partial(fused.fused_separable_conv, how), operands, gradients)
    for part in ('forward', 'backward'):
        (each,) = (each for name, each in code.items() if f'separable_{part}' in name)
        found[part] = each.cycles
        if flags.FLAGS.loops:
            show(f'{part}, {step.images} images, {step.rows} rows', each.whole, each, console)
    found['kernels'] = found['forward'] + found['backward']
    lanes = sum(-(-c // kernels.LANES) * kernels.LANES for c in (channels, features))
    found['traffic'] = 3 * n * height * width * lanes * dtype.itemsize * per_byte
    return {**found, 'images': step.images, 'rows': step.rows}


def plain(*operands: Any) -> Any:
    """What a kernel computes, in XLA's own operations."""
    with ops.lowerings('auto', 'tpu'):
        return trial.plain(*operands)


def compiled(
    function: Any, operands: Any, gradients: Any
) -> tuple[cost.Cost, dict[str, schedule.Schedule]]:
    """The cost of a function's value and gradient, and the schedules of its operations."""

    def both(operands: Any, gradients: Any) -> Any:
        value, pull = jax.vjp(function, *operands)
        return value, pull(gradients)

    program = jax.jit(both).lower(operands, gradients).compile()
    scheduled = schedule.collect(schedule.record())
    return cost.read(program, scheduled), scheduled


def show(
    title: str, loop: schedule.Loop, found: schedule.Schedule, console: Console, times: int = 1
) -> None:
    """Prints a loop and those in it: bundles, trips, and how much of each unit's slots they use."""
    used = [
        f'{unit} {count / loop.bundles / schedule.UNITS[unit]:.0%}'
        for unit, count in found.used(loop).items()
        if count > 0.1 * loop.bundles
    ]
    times *= loop.trips
    console.print(f'{title}: {loop.bundles} bundles, {times} times: {", ".join(used)}')
    for inner in loop.inner:
        show(f'  {title}', inner, found, console, times)


if __name__ == '__main__':
    program.run(main, alone=True)
