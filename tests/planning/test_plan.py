"""Plans of real slices, where the TPU compiler is; and what is said without it."""

import json

import pytest

from xception_flax import config as configs
from xception_flax.planning import chips, steps
from xception_flax.runtime.errors import UserError

PLAN = (
    '-m', 'xception_flax.plan', '--config=configs/digits.py', '--config.dtype=bfloat16',
    '--config.xception.middle_repeats=1', '--config.batch_size=64',
)  # fmt: skip


@pytest.mark.parametrize(
    ('topology', 'words'),
    [
        ('v5:4x4', "there is no 'v5'.*did you mean"),
        ('v5e:4x4x4', 'give the shape in 2D, as v5e:4x4'),
        ('v4:4x4', 'give the shape in 3D, as v4:4x4x4'),
        ('v5e', 'give the shape in 2D'),
        ('v5e:0x4', 'give the shape in 2D'),
    ],
)
def test_slices_that_there_are_not(topology, words):
    with pytest.raises(UserError, match=words):
        chips.describe(topology)


def test_the_topology_has_to_be_given(program):
    assert 'error: --topology is missing, such as' in program(*PLAN, status=1)


@pytest.mark.parametrize(
    ('accumulation', 'group', 'excess', 'advice'),
    [  # of 512 pictures on 8 devices
        (1, 0, 1.25, 'try --config.accumulation=2, or --config.batch_size=384'),  # 48 a device
        (1, 0, 2.5, 'try --config.accumulation=4, or --config.batch_size=192'),
        (2, 0, 1.25, 'try --config.accumulation=4, or --config.batch_size=384'),  # 24 at once
        (1, 32, 2.3, 'try --config.accumulation=4, or --config.batch_size=192'),  # not 208
        (0, 0, 1.25, 'try --config.batch_size=384'),
        (1, 0, 125, 'not even one picture a device may fit'),
    ],
)
def test_what_does_not_fit_gets_a_batch_that_does(accumulation, group, excess, advice):
    c = configs.default()
    c.batch_size, c.xception.bn_group_size = 512, group
    assert steps.advise(c, 8, accumulation, excess) == advice


def test_a_plan_by_the_compiler(program):
    pytest.importorskip('libtpu')
    plan = json.loads(program(*PLAN, '--topology=v5e:2x2', '--json'))['config']
    assert (plan['chips'], plan['parameters'], plan['batch_size']) == (4, 158_058, 64)
    for kind in ('training', 'evaluation'):
        found = plan[kind]
        assert found['fits']
        assert found['memory'] == found['arguments'] + found['temporaries'] < 2**30
        assert sum(found['estimated_cycles_by_stage'].values()) == found['estimated_cycles'] > 0
        assert sum(found['estimated_cycles_by_kind'].values()) == found['estimated_cycles']
        assert {'middle_flow', 'exit_flow/block1'} <= set(found['estimated_cycles_by_stage'])
    # Gradients of all parameters are summed over the chips, most of them in bfloat16.
    assert plan['training']['collective_bytes']['all-reduce'] > 2 * 158_058
    assert plan['evaluation']['flops'] < plan['training']['flops'] / 2


def test_costs_of_micro_batches_are_of_one(program):
    pytest.importorskip('libtpu')
    plan, split = (
        json.loads(program(*PLAN, '--topology=v5e:2x2', '--json', f'--config.accumulation={k}'))
        for k in (1, 4)
    )
    plan, split = plan['config']['training'], split['config']['training']
    assert (plan['pictures'], split['pictures']) == (64, 16)
    # A quarter of the work, and all of the update, which counts in so small a network.
    assert 0.25 < split['flops'] / plan['flops'] < 0.4


def test_two_configs_side_by_side(program):
    pytest.importorskip('libtpu')
    output = program(
        *PLAN, '--topology=v5e:2x2', '--compare=configs/fashion_mnist.py', COLUMNS='120'
    )
    assert output.count('xception on v5e:2x2: 4 chips') == 2
    assert '64 pictures a step, 16 a chip' in output
    assert '128 pictures a step, 32 a chip' in output
    assert 'estimated by the compiler' in output
