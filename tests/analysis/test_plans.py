"""Plans of TPU slices, where the TPU compiler is installed; and errors, which do not need it."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from helpers import default_config, small_config

from xception_flax.analysis import plans, slices
from xception_flax.base.errors import UserError
from xception_flax.config.reading import read_file
from xception_flax.models import build_model
from xception_flax.models.counts import summarise
from xception_flax.training import setup

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
def test_an_unknown_slice_is_refused(topology, words):
    with pytest.raises(UserError, match=words):
        slices.describe(topology)


def test_the_topology_is_required(program):
    assert 'error: --topology is missing, such as' in program(*PLAN, status=1)


@pytest.mark.parametrize(
    ('accumulation', 'group', 'excess', 'advice'),
    [  # of 512 images on 8 devices
        (1, 0, 1.25, 'try --config.accumulation=2, or --config.batch_size=384'),  # 48 per device
        (1, 0, 2.5, 'try --config.accumulation=4, or --config.batch_size=192'),
        (2, 0, 1.25, 'try --config.accumulation=4, or --config.batch_size=384'),  # 24 at once
        (1, 32, 2.3, 'try --config.accumulation=4, or --config.batch_size=192'),  # not 208
        (0, 0, 1.25, 'try --config.batch_size=384'),
        (1, 0, 125, 'even one image per device may not fit'),
    ],
)
def test_a_step_that_does_not_fit_gets_advice_that_does(accumulation, group, excess, advice):
    c = default_config(batch_size=512, xception__bn_group_size=group)
    assert plans.advise(c, 8, accumulation, excess) == advice


def test_a_plan_is_consistent(program):
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
    # The gradients of all parameters are summed over the chips, most of them in bfloat16.
    assert plan['training']['collective_bytes']['all-reduce'] > 2 * 158_058
    assert plan['evaluation']['flops'] < plan['training']['flops'] / 2


def test_each_chip_has_its_own_images_however_batch_norm_groups_them(program):
    pytest.importorskip('libtpu')
    whole, grouped = (
        json.loads(
            program(
                *PLAN, '--topology=v5e:2x4', '--json', '--config.batch_size=48',
                f'--config.xception.bn_group_size={size}',
            )
        )['config']['training']
        for size in (0, 8)  # six groups on eight chips
    )  # fmt: skip
    # If two chips worked on the same images, this would be a third more at least.
    assert grouped['flops'] == pytest.approx(whole['flops'], rel=0.05)
    # Between chips go gradients, and for batch norm four sums per image and channel at most: of
    # values and of squares, and their gradients; not features.
    c = read_file('configs/digits.py')
    c.xception.middle_repeats = 1
    channels = summarise(build_model(c, 10), c.image_size).statistics // 2  # mean and variance
    sent, without = (sum(plan['collective_bytes'].values()) for plan in (grouped, whole))
    assert sent - without <= 4 * channels * 48 * jnp.float32(0).nbytes


def test_two_slices_exchange_each_sum_once_over_the_network_between_them(program):
    pytest.importorskip('libtpu')
    one, two = (
        json.loads(program(*PLAN, '--topology=v5e:2x2', f'--slices={n}', '--json'))['config']
        for n in (1, 2)
    )
    assert (two['topology'], two['chips'], two['devices']) == ('2 x v5e:2x2', 8, 8)
    assert two['training']['flops'] < 0.6 * one['training']['flops']
    assert 'between slices' not in one['training']['collective_bytes']
    # Gradients are exchanged once, at most in float32, with batch norm's sums; not features.
    sent = two['training']['collective_bytes']['between slices']
    assert 2 * two['parameters'] / 4 < sent < 4.2 * two['parameters']


def test_with_accumulation_the_costs_are_those_of_a_micro_batch(program):
    pytest.importorskip('libtpu')
    # In one form of the operations: kernels take eight images or more.
    plan = (*PLAN, '--topology=v5e:2x2', '--json', '--config.lowering=reference')
    whole, quarter = (json.loads(program(*plan, f'--config.accumulation={k}')) for k in (1, 4))
    whole, quarter = whole['config']['training'], quarter['config']['training']
    assert (whole['images'], quarter['images']) == (64, 16)
    # A quarter of the work, and the whole update, which matters in so small a network.
    assert 0.25 < quarter['flops'] / whole['flops'] < 0.4


def test_two_configs_are_printed_side_by_side(program):
    pytest.importorskip('libtpu')
    output = program(
        *PLAN, '--topology=v5e:2x2', '--compare=configs/fashion_mnist.py', COLUMNS='120'
    )
    assert output.count('xception on v5e:2x2: 4 chips') == 2
    assert '64 images per step, 16 per chip' in output
    assert '128 images per step, 32 per chip' in output
    assert 'estimate of the compiler' in output


def test_the_memory_of_a_step_that_does_not_fit_is_found_from_batches_that_do(monkeypatch):
    """A fake compiler: a step needs 1 GiB, and 10 MiB per image, of a device's 16 GiB."""
    c = small_config(
        batch_size=8192, total_steps=1, dataset__source='synthetic', dataset__num_classes=10,
        dataset__eval_split='validation',
    )  # fmt: skip
    run = setup.set_up(c)
    devices, tried = run.mesh.size, []

    def cost(step, arguments):
        size = arguments[1]['image'].shape[0]
        tried.append(size)
        memory = 2**30 + 10 * 2**20 * size // devices
        return SimpleNamespace(memory=memory) if memory <= 16 * 2**30 else None

    monkeypatch.setattr(plans, '_cost', cost)
    where = SimpleNamespace(chip=slices.CHIPS['v5e'])
    batch = {'image': jax.ShapeDtypeStruct((8192, 16, 16, 3), 'uint8')}
    found = plans._compile(run.train_step, (run.abstract_state, batch), run, where)
    assert found.cost is None
    assert found.needed == pytest.approx(2**30 + 10 * 2**20 * 8192 / devices)
    assert tried[0] == 8192
    assert found.advice.startswith('try --config.accumulation=')
    monkeypatch.setattr(plans, '_cost', lambda step, arguments: None)
    found = plans._compile(run.train_step, (run.abstract_state, batch), run, where)
    assert found.advice == 'not even the smallest batch fits'
