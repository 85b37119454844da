"""The comparison of kernels with XLA's own operations, on a CPU that stands for a TPU."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_variables, small_config
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_flax import models, ops
from xception_flax.base import mesh as meshes
from xception_flax.base import processes
from xception_flax.ops import fused, kernels, trial
from xception_flax.training import loop, standalone
from xception_flax.training.setup import set_up
from xception_flax.training.step import choose_operations

SHAPES = ((8, 2, 2, fused.LEAST), (8, 1, 2, fused.LEAST))
ALL = "kernels for 2 of 2 layers' shapes: 2.0 times as fast as XLA's own operations"
FIRST = f"XLA's own operations for 8x2x2x{fused.LEAST} to 8: "
COMPARING = "comparing kernels with XLA's own operations, "
BATCH = NamedSharding(
    Mesh(np.array(jax.devices()[:1]), ('data',), axis_types=(AxisType.Auto,)),
    PartitionSpec('data'),
)


def plain(x, multiplier, offset, depthwise, pointwise, step=None):
    """`kernels.forward` in XLA's own operations: quicker than the interpreter."""
    images_first = x.transpose(2, 0, 1, 3)
    y, sums = trial.plain(
        images_first, multiplier, offset, depthwise[:, :, None], pointwise[None, None]
    )
    return y.transpose(1, 2, 0, 3), sums


def plain_gradient(x, y, dy, dsums, *others):
    _, pull = jax.vjp(plain, x, *others[:-1])
    return pull((dy, dsums))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes the CPU a TPU with kernels that are right and fast; gives the folder of programs."""
    monkeypatch.setattr(kernels, 'forward', plain)
    monkeypatch.setattr(kernels, 'backward', plain_gradient)
    monkeypatch.setattr(trial, '_device', lambda batch: jax.devices()[0])
    monkeypatch.setattr(fused, 'rejected', set())
    take(monkeypatch, 1, 2)
    monkeypatch.setattr(trial, '_folder', lambda: str(tmp_path / 'compiled'))
    return tmp_path / 'compiled'


def take(monkeypatch, ours, theirs):
    """Lets the kernels and XLA's own operations, which are measured first, take these seconds."""
    times = iter([theirs, ours] * 9)
    monkeypatch.setattr(trial, '_seconds', lambda run: next(times))


@pytest.fixture
def quick(folder, monkeypatch):
    """Compares at once: the kernels are faster. Gives the folder of programs."""
    monkeypatch.setattr(trial, 'compare', lambda *_: trial.Verdict('', 1, 2))
    return folder


def chosen(shapes=SHAPES, dtype=jnp.float32):
    """Compares; gives the lines printed, and for which shapes kernels are launched."""

    def launched():
        return [bool(ops.launch(shape, 8, dtype)) for shape in shapes]

    lines = []
    trial.choose(launched, BATCH, lines.append)
    with ops.lowerings('auto', 'tpu', BATCH):
        return lines, launched()


def test_kernels_that_are_right_and_faster_are_chosen_and_remembered(folder):
    progress = [f'{COMPARING}{number} of 2' for number in (1, 2)]
    assert chosen() == ([*progress, ALL], [True, True])
    assert chosen() == ([ALL], [True, True])


def test_real_kernels_are_right(monkeypatch):
    monkeypatch.setattr(trial, '_seconds', lambda run: run() and 1.0)
    layer = fused.Layer((8, 3, 2, 8), 8, 'bfloat16')
    verdict = trial.compare(layer, kernels.Step(8, 2, None), jax.devices()[0])
    assert verdict == ('1.00 times as fast as the kernels', 1, 1)


def test_programs_may_choose_the_order_of_their_operands_and_results(folder, monkeypatch):
    orders = []

    def order(run):
        orders.extend(x.format.layout.major_to_minor for x in run() if x.ndim == 4)
        return 1.0

    def images_third(*operands):  # as real kernels write them
        return jax.lax.optimization_barrier(plain_gradient(*operands))

    monkeypatch.setattr(kernels, 'backward', images_third)
    monkeypatch.setattr(trial, '_seconds', order)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    layer = fused.Layer((8, 6, 5, 136), 24, 'float32')
    verdict = trial.compare(layer, kernels.Step(8, 6, None), jax.devices()[0])
    assert verdict.against == '1.00 times as fast as the kernels'
    assert len(set(orders)) > 1


def broken(name, number, change):
    """A kernel one of whose results is changed."""
    whole = {'forward': plain, 'backward': plain_gradient}[name]

    def kernel(*operands):
        results = list(whole(*operands))
        results[number] = change(results[number])
        return tuple(results)

    return kernel


def first_wrong(x):
    return x.at[0, 0, 0, 0].add(1)


@pytest.mark.parametrize(
    ('name', 'number', 'change', 'reason'),
    [
        ('forward', 0, first_wrong, 'output is wrong by '),
        ('forward', 0, lambda y: y * jnp.nan, 'output is not finite'),
        ('forward', 1, lambda sums: sums.at[1].multiply(1.05), 'sum of the squared output is wrong '
         'by 0.05'),
        ('backward', 0, lambda dx: dx.at[:, :, 3].set(0), 'gradient of the input is wrong by '),
        ('backward', 2, jnp.zeros_like, "gradient of batch norm's summand is wrong by 1"),
        ('backward', 4, lambda d: 1.31 * d, 'gradient of the pointwise kernel is wrong by 0.31'),
        ('backward', 3, lambda d: d.at[0].set(jnp.inf), 'gradient of the depthwise kernel is not '
         'finite'),
    ],
)  # fmt: skip
def test_wrong_kernels_do_not_run(folder, monkeypatch, name, number, change, reason):
    monkeypatch.setattr(kernels, name, broken(name, number, change))
    lines, launched = chosen(SHAPES[:1])
    assert lines[-1].startswith(f"{FIRST}the kernel's {reason}")
    assert launched == [False]
    assert chosen(SHAPES[:1]) == (lines[-1:], [False])


def test_a_kernel_that_fails_does_not_run(folder, monkeypatch):
    def fail(x, *others):
        if x.shape[0] == 2:
            raise NotImplementedError('not\non this chip ' + 999 * '!')
        return plain(x, *others)

    times = iter([2, 2, 1])  # none of the kernel that fails
    monkeypatch.setattr(trial, '_seconds', lambda run: next(times))
    monkeypatch.setattr(kernels, 'forward', fail)
    lines, launched = chosen()
    assert lines[-1].startswith(
        "kernels for 1 of 2 layers' shapes: 2.0 times as fast as XLA's own operations; "
        f'{FIRST}the kernel fails (NotImplementedError: not on this chip !!!'
    )
    assert len(lines[-1]) < 400
    assert launched == [False, True]


def test_slower_kernels_do_not_run(folder, monkeypatch):
    take(monkeypatch, 1.3, 1)
    lines, launched = chosen()
    assert lines[-1] == f'{FIRST}1.30 times as fast as the kernels (and for 1 more)'
    assert launched == [False, False]


def test_a_comparison_that_is_impossible_is_not_remembered(folder, monkeypatch):
    def fail(*operands):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(trial, 'plain', fail)
        lines, launched = chosen(SHAPES[:1])
    assert lines[-1] == f'{FIRST}there was no comparison (MemoryError:)'
    assert launched == [False]
    assert chosen(SHAPES[:1])[1] == [True]


@pytest.mark.parametrize('what', ['jax', 'kernels', 'options'])
def test_whatever_may_change_the_verdict_compares_again(quick, monkeypatch, tmp_path, what):
    chosen(SHAPES[:1])
    if what == 'jax':
        monkeypatch.setattr(jax, '__version__', '9.9.9')
    elif what == 'options':
        monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_an_option=true')
    else:
        sources = tmp_path / 'sources'
        shutil.copytree(trial.SOURCES, sources)
        monkeypatch.setattr(trial, 'SOURCES', sources)
        assert len(chosen(SHAPES[:1])[0]) == 1
        with (sources / 'kernels.py').open('a') as file:
            file.write('# changed\n')
    lines, _ = chosen(SHAPES[:1])
    assert lines[0] == f'{COMPARING}1 of 1'


@pytest.mark.parametrize('damage', ['', '{', '[]', '\xff', 'entries', 'numbers'])
def test_a_damaged_file_is_none(quick, damage):
    chosen(SHAPES[:1])
    file = quick / trial.FILE
    stored = json.loads(file.read_text())
    if damage == 'entries':
        damage = json.dumps(dict.fromkeys(stored, 'kernels'))
    elif damage == 'numbers':
        damage = json.dumps({key: {**entry, 'kernels': 0} for key, entry in stored.items()})
    file.write_bytes(damage.encode('latin-1'))
    assert len(chosen(SHAPES[:1])[0]) == 2
    assert json.loads(file.read_text()) == stored


def test_a_folder_that_cannot_be_written_is_none(quick, monkeypatch, tmp_path):
    quick.write_text('a file')
    assert len(chosen(SHAPES[:1])[0]) == len(chosen(SHAPES[:1])[0]) == 2
    for folder in ('nowhere://bucket/folder', None):
        monkeypatch.setattr(trial, '_folder', lambda folder=folder: folder)
        assert len(chosen(SHAPES[:1])[0]) == 2


def test_all_processes_choose_what_none_rejects(quick, monkeypatch):
    def gather(ours):
        return np.stack([ours, np.array([0, 1], np.uint32)])

    monkeypatch.setattr(processes, 'gather', gather)
    lines, launched = chosen()
    assert launched == [True, False]
    assert lines[-1].endswith(
        f"; XLA's own operations for 8x1x2x{fused.LEAST} to 8: another process rejects the kernel"
    )


def test_only_tpus_of_this_process_are_compared():
    def sharding(*devices):
        return types.SimpleNamespace(mesh=types.SimpleNamespace(devices=np.array(devices)))

    described = types.SimpleNamespace(platform='tpu')
    assert trial._device(sharding(described)) is None
    assert trial._device(BATCH) is None
    assert trial.choose(lambda: pytest.fail('traced'), BATCH, pytest.fail) == {}


@pytest.mark.parametrize('lowering', ['auto', 'reference', 'pallas'])
def test_networks_are_compared_where_nothing_is_forced(folder, monkeypatch, lowering):
    seen = []

    def compare(layer, *_):
        seen.append(layer)
        return trial.Verdict('', 1, 2)

    monkeypatch.setattr(trial, 'compare', compare)
    config = small_config(lowering=lowering, xception__width=0.2, xception__middle_repeats=2)
    run = set_up(config, meshes.make_mesh())
    lines = []
    choose_operations(
        run.model, run.abstract_state.variables('live'), config, run.mesh, (8, 16, 16),
        lines.append,
    )  # fmt: skip
    if lowering != 'auto':
        assert not lines
        return
    assert len(seen) == len(set(seen)) == len(lines) - 1
    assert {layer.shape[0] for layer in seen} == {8, 16}
    assert lines[-1].startswith(f'kernels for {len(seen)} of {len(seen)} ')


def test_training_and_evaluation_choose_before_they_begin(monkeypatch, tmp_path):
    def choose(model, variables, config, mesh, sizes, say):
        logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
        assert logits.shape == (16, 10)
        raise KeyboardInterrupt(*sizes)

    for module in (loop, standalone):
        monkeypatch.setattr(module, 'choose_operations', choose)
    config = small_config(accumulation=2)
    images = jnp.zeros((16, 16, 16, 3))
    with pytest.raises(KeyboardInterrupt) as raised:
        loop.train(config, tmp_path)
    assert raised.value.args == (8, 16)
    model = models.build_model(config, 10)
    net = types.SimpleNamespace(
        model=model, variables=random_variables(model, 16), config=config, class_names=None
    )
    with pytest.raises(KeyboardInterrupt) as raised:
        standalone.evaluate_networks({'live': net}, config)
    assert raised.value.args == (16,)
