"""Schedules read from machine code: some by hand in libtpu's format, some by the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax.analysis import schedule, slices
from xception_flax.ops import fused, kernels

CODE = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %0 = vdelay 1 } /* Start region 0 */
   0x1 LB: > { %s4 = sadd.s32 1, %s3 /* iteration index, stage = 1 */  } /* Start region 9 */
   0x2   : > { %s5 = sadd.s32 4294967294, %s3 /* iteration index, stage = 2 */  }
   0x3   : > { %5 = sbr.rel (%p7_p1) target = $region5 }
   0x4 LB: >> { %s8 = smul.u32 8, %s6 } /* Start region 4 :: Start region 3 */
   0x5   : >> { %p9_p2 = scmp.ge.s32.totalorder %s8, 19 /* loop exit test */ }
   0x6   : >> { %10 = vst [vmem:[%s8]] %v1  ;;  %11 = sbr.rel (!%p9_p2) target = $region3 }
   0x7   : >> { %12 = nop }
   0x8   : > { %p13_p0 = scmp.ge.s32.totalorder %s5, 6 /* loop exit test */ }
   0x9   : > { %14 = sbr.rel (!%p13_p0) target = $region9 }
   0xa   : > { %15 = nop }
   0xb   :  { %16 = sfence }
"""


def test_loops_count_as_often_as_they_run():
    whole = schedule.parse(CODE)
    (grid,) = whole.inner
    (rows,) = grid.inner
    assert (rows.first, rows.end, rows.trips) == (4, 8, 19)
    # Two of six trips only fill and empty the pipeline.
    assert (grid.first, grid.end, grid.trips, grid.bundles) == (1, 11, 4, 6)
    assert whole.bundles == 2
    assert whole.cycles == 2 + 4 * (6 + 19 * 4)


def test_slots_of_inner_loops_are_theirs():
    text = '== CAPACITY:\n4 3\n== UTILIZATION:\n' + '\n'.join(
        '1 0 2 0 0 0 0 0 0 0' for _ in range(12)
    )
    found = schedule.Schedule(schedule.parse(CODE), schedule.parse_slots(text))
    (grid,) = found.whole.inner
    assert found.used(grid) == dict.fromkeys(schedule.UNITS, 0) | {'MXU': 6, 'VALU': 12}


def compiled(topology, height, n, dtype=jnp.bfloat16):
    """The schedules of both kernels for `[n, height, 5, 64]` to 136 features, and their steps."""
    where = slices.describe(topology)
    device = where.mesh.devices.flat[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    memory = fused.MEMORY[device.device_kind]
    step = kernels.best_step(
        (n, height, 5, 64), 136, fused.IMAGES, jnp.dtype(dtype).itemsize, memory
    )
    shapes = (n, height, 5, 64), (64,), (64,), (3, 3, 1, 64), (1, 1, 64, 136)
    operands = [
        jax.ShapeDtypeStruct(shape, jnp.float32 if i else dtype, sharding=sharding)
        for i, shape in enumerate(shapes)
    ]

    def both(*operands):
        value, pull = jax.vjp(lambda *a: fused.fused_separable_conv(how, *a), *operands)
        return value, pull(value)

    how = fused.Launch(step, None)
    schedule.collect(schedule.record())
    jax.jit(both).lower(*operands).compile()
    found = schedule.collect(schedule.record())
    return n // step.images // device.num_cores, {
        k.split('.')[0]: v for k, v in found.items() if k.startswith('separable')
    }


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_kernels_compile_for_every_generation(topology, dtype):
    pytest.importorskip('libtpu')
    steps, found = compiled(topology, 6, 64, dtype)
    assert len(found) == 2
    for name, each in found.items():
        (grid,) = each.whole.inner
        assert grid.trips == steps, name
        assert {loop.trips for loop in grid.inner} <= {6, 8, 3}  # rows, with neighbours, pairs
        assert len(each.slots) == each.whole.end
        assert each.used(grid.inner[-1])['MXU'] > 0


def test_cycles_grow_with_the_steps_of_the_grid():
    pytest.importorskip('libtpu')
    few, many = (
        {name.split('_')[1]: each.cycles for name, each in compiled('v5e:2x2', 6, n)[1].items()}
        for n in (64, 128)
    )
    for part in ('forward', 'backward'):
        np.testing.assert_allclose(many[part], 2 * few[part], rtol=0.1)
