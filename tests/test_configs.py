"""Every file in configs/: lowered at its real size, and trained in a reduced form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

from xception_flax import config as configs
from xception_flax import ops
from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.models import inception_v3, vgg16
from xception_flax.ops import depthwise, separable
from xception_flax.training.setup import set_up

FILES = sorted((ROOT / 'configs').glob('*.py'))
CLASSES, BATCH = 10, 4
# Programs that run twice are not worth optimising; the older emitter, which newer versions of XLA
# do not have, takes a quarter of the time.
QUICK: dict = {'xla_backend_optimization_level': 0}
if jax.__version_info__ < (0, 11):
    QUICK['xla_cpu_use_fusion_emitters'] = False
# Smaller networks of the same parts, and the images that they take.
REDUCED = {
    'xception': ({'stem': 'small', 'width': 0.125, 'middle_repeats': 1}, 16),
    'vgg16': ({}, 32),
    'resnet152': ({'stages': (1, 1)}, 32),
    'inception_v3': ({'stem': 'small', 'width': 0.125}, 16),
}
# The first blocks and stages only, of networks that have no options for their number.
INCEPTION_BLOCKS = inception_v3.blocks('slim', 'SAME')[:3]
VGG_STAGES = vgg16.STAGES[:2]
# Networks that the other files vary.
VARIED = ('imagenet', 'imagenet_inception_v3', 'imagenet_vgg16', 'open_images_fc')
each_file = pytest.mark.parametrize(
    'file',
    [pytest.param(f, marks=[] if f.stem in VARIED else pytest.mark.slow) for f in FILES],
    ids=lambda file: file.stem,
)


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    """The reference instead of the depthwise convolution for CPU, which has many operations."""
    for module in (ops, separable):
        monkeypatch.setattr(module, 'depthwise_conv', depthwise.convolution)


def of_open_images(file):
    return file.stem.startswith('open_images')


def synthetic(file, classes):
    """The config, with random images as its data."""
    c = reading.read_file(file)
    for setting, value in configs.default().dataset.items():
        c.dataset[setting] = value
    c.dataset.source, c.dataset.num_classes = 'synthetic', classes
    c.best = 'loss'  # these images have one label each
    return c


def random_state(abstract_state):
    """A state with random weights; nothing is compiled for it."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key == 'kernel':
            return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(x.dtype)
        return np.full(x.shape, path[-1].key in ('scale', 'var'), x.dtype)

    weights = {
        name: jax.tree_util.tree_map_with_path(draw, getattr(abstract_state, name))
        for name in ('params', 'batch_stats')
    }
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_state)
    return dataclasses.replace(empty, **weights, ema=weights if abstract_state.ema else None)


@each_file
def test_the_training_step_is_lowered_at_its_real_size(file):
    classes = 7186 if of_open_images(file) else 1000
    run = set_up(synthetic(file, classes))
    size, batch = run.config.image_size, run.config.batch_size
    shape = (batch, classes) if of_open_images(file) else (batch,)
    images = {
        'image': jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    lowered = run.train_step.lower(run.abstract_state, images)  # nothing is allocated
    state, metrics = lowered.out_info
    assert metrics['loss'].shape == ()
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(state) == shapes(run.abstract_state)


@each_file
def test_two_steps_of_a_reduced_form_train(file, monkeypatch):
    monkeypatch.setattr(inception_v3, 'blocks', lambda variant, padding: INCEPTION_BLOCKS)
    monkeypatch.setattr(vgg16, 'STAGES', VGG_STAGES)
    c = synthetic(file, CLASSES)
    options, c.image_size = REDUCED[c.model]
    c[c.model].update(options)
    if c[c.model].get('fc_layers'):
        c[c.model].fc_layers = (32, 32)
    # On CPU, bfloat16 takes longer to compile.
    c.batch_size, c.total_steps, c.schedule.warmup_steps, c.dtype = BATCH, 2, 1, 'float32'
    reading.override_units(c, ['total_steps', 'schedule.warmup_steps'])
    run = set_up(c)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    batch = {
        'image': rng.integers(0, 256, (BATCH, c.image_size, c.image_size, 3), dtype=np.uint8),
        'label': np.eye(CLASSES, dtype=np.int32)[labels] if of_open_images(file) else labels,
    }
    first = state = random_state(run.abstract_state)
    step = run.train_step.lower(state, batch).compile(QUICK)
    for _ in range(2):  # the first with a learning rate of 0
        state, metrics = step(state, batch)
        assert metrics['skipped'] == 0
        assert 0 < metrics['loss'] < 50
    assert state.step == 2
    moved = jax.tree.map(lambda a, b: np.any(a != b), state.params, first.params)
    assert all(jax.tree.leaves(moved))


START = 'from xception_flax import config as configs\n\n\ndef get_config():\n    c = configs.'


def test_a_config_starts_from_another_wherever_it_is(tmp_path, monkeypatch):
    base, mine = tmp_path / 'base.py', tmp_path / 'mine.py'
    base.write_text(f'{START}default()\n    c.seed = 7\n    return c\n')
    mine.write_text(f"{START}start_from('base.py', __file__)\n    c.batch_size = 5\n    return c\n")
    monkeypatch.chdir(tmp_path.parent)
    for path in (mine, f'{tmp_path.name}/mine.py'):
        c = reading.read_file(path)
        assert (c.seed, c.batch_size) == (7, 5)
    monkeypatch.chdir(tmp_path)
    assert reading.read_file('mine.py').seed == 7
    base.write_text(f'{START}default()\n    c.sed = 7\n')
    with pytest.raises(UserError, match=r"mine\.py:5: .*base\.py:6: there is no setting 'sed'"):
        reading.read_file('mine.py')


@pytest.mark.parametrize('file', [f for f in FILES if of_open_images(f)], ids=lambda f: f.stem)
def test_thousands_of_sigmoids_start_near_zero(file):
    c = reading.read_file(file)
    assert c[c.model].head_bias == -10
