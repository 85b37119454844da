"""The Colab notebooks: their cells run, on runs that are made here."""

import base64
import json
import re
import subprocess
import sys
from typing import Any, NamedTuple

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
from helpers import CACHE, DIGITS, ROOT, random_variables, small_config

import xception_flax
from xception_flax import Trained
from xception_flax.models import abstract_variables, build_model

FOLDER = ROOT / 'experiments' / 'colab'
NOTEBOOKS = ('xception', 'from_keras_to_flax')
SHORTER = list(DIGITS[3:])
each_notebook = pytest.mark.parametrize('notebook', NOTEBOOKS)


def only(fixture, notebook):
    """Gives a test the `fixture` of one notebook."""
    return pytest.mark.parametrize(fixture, [notebook], indirect=True)


def read(notebook):
    return nbformat.read(FOLDER / f'{notebook}.ipynb', as_version=4)


class InProcess(NamedTuple):
    """What a notebook's cells left behind: variables, commands, and the number of figures."""

    notebook: str
    names: dict[str, Any]
    commands: list[list[str]]
    figures: int


@pytest.fixture(
    scope='module',
    params=['xception', pytest.param('from_keras_to_flax', marks=pytest.mark.slow)],
)
def in_process(request, tmp_path_factory):
    """The cells run in this process, with an untrained network and without the trainings."""
    tmp_path = tmp_path_factory.mktemp('in_process')
    config = small_config(xception__width=0.125, dataset__num_classes=10)
    model = build_model(config, 10)
    net = Trained(model, random_variables(model, 16), config, tuple('0123456789'))
    net.save(tmp_path / 'run')
    cv2.imwrite(str(tmp_path / 'run' / 'curves.png'), np.zeros((8, 8), np.uint8))
    settings = {'WORKDIR': f'{tmp_path}/run', 'FINETUNED': f'{tmp_path}/tuned', 'SHORTER': SHORTER}
    commands = []

    def note(command, **_):
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, 0, '', '')

    plt.close('all')
    plt.switch_backend('agg')
    names, platforms = {}, jax.config.jax_platforms
    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.setattr(subprocess, 'run', note)
        patch.chdir(FOLDER)
        for module in ('tensorflow', 'keras'):  # which the cells must not import
            patch.delitem(sys.modules, module, raising=False)
        for cell in read(request.param).cells:
            if cell.cell_type == 'code':
                exec(cell.source.replace('%matplotlib inline', ''), names)
            if 'settings' in cell.metadata.get('tags', ()):
                names.update(settings)
    jax.config.update('jax_platforms', platforms)
    yield InProcess(request.param, names, commands, len(plt.get_fignums()))
    plt.close('all')


def test_its_cells_run_and_its_commands_are_understood(in_process, program):
    figures, count = {
        'xception': (2, 2),  # filters, maps; to resume, to fine-tune
        'from_keras_to_flax': (0, 1),  # it shows files and the package's drawings
    }[in_process.notebook]
    assert in_process.figures == figures
    trainings = [command for command in in_process.commands if 'xception_flax.main' in command]
    assert len(trainings) == count
    for command in trainings:  # with an error behind the flags, and before any work
        output = program(*command, '--config.batch_size=0', status=1)
        assert output == 'error: config.batch_size is 0; it must be between 1 and 16777216\n'


def number_of_weights(module):
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
@only('in_process', 'from_keras_to_flax')
def test_its_separable_convolution_has_the_weights_of_the_articles_example(in_process):
    separable = in_process.names['Separable'](64)
    assert number_of_weights(nn.Conv(64, (3, 3), use_bias=False)) == 1728
    assert number_of_weights(separable) == 219


@pytest.mark.slow
@only('in_process', 'from_keras_to_flax')
def test_its_separable_convolution_is_a_regular_one_of_rank_1(in_process):
    rng = np.random.default_rng(0)
    sizes = (3, 3, 1, 3), (1, 1, 3, 5), (2, 9, 9, 3)
    first, second, x = (rng.standard_normal(size, np.float32) for size in sizes)
    kernel = first.transpose(0, 1, 3, 2) * second  # [3, 3, 3, 5]
    assert in_process.names['ranks'](kernel).tolist() == [1, 1, 1]
    regular = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    weights = {'depthwise': {'kernel': first}, 'pointwise': {'kernel': second}}
    separable = in_process.names['Separable'](5).apply({'params': weights}, x)
    np.testing.assert_allclose(separable, regular, atol=1e-5)


@pytest.mark.slow
@only('in_process', 'from_keras_to_flax')
def test_its_network_is_the_packages(in_process, float64):
    ours = in_process.names['Xception']()
    packaged = xception_flax.create_model('xception', 1000, dtype=jnp.float64)
    shapes = abstract_variables(ours, 299)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == 22_855_952
    variables = random_variables(packaged, 71)  # float64: rounding cannot hide a mistake
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 71, 71, 3))
    logits, expected = (jax.jit(model.apply)(variables, x) for model in (ours, packaged))
    assert logits.dtype == expected.dtype == jnp.float64
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-10)


@pytest.fixture(scope='module', params=NOTEBOOKS)
def executed(request, tmp_path_factory, program):
    """A notebook's cells after the run, and the folder of its trainings."""
    folder = tmp_path_factory.mktemp('notebook')
    notebook = read(request.param)
    (settings,) = [c for c in notebook.cells if 'settings' in c.metadata.get('tags', ())]
    settings.source = (
        f'WORKDIR = {str(folder / "run")!r}\nFINETUNED = {str(folder / "tuned")!r}\n'
        f'SHORTER = {SHORTER}\nMORE_STEPS = 8\n'
    )
    if request.param == 'xception':  # the other one trains
        program(*DIGITS, f'--workdir={folder}/run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_COMPILATION_CACHE_DIR', CACHE)
        patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={'metadata': {'path': str(FOLDER)}}
        )
        client.execute()  # raises where a cell does
    return notebook.cells, folder


def printed(cells):
    return ''.join(o.text for c in cells for o in c.get('outputs', ()) if o.output_type == 'stream')


def images(cells):
    data = [o['data'] for c in cells for o in c.get('outputs', ()) if 'data' in o]
    kinds = ('image/png', 'image/jpeg')
    return [base64.b64decode(d[kind]) for d in data for kind in kinds if kind in d]


@pytest.mark.slow
@only('executed', 'xception')
def test_it_prints_the_results_of_the_runs(executed):
    cells, folder = executed
    text = printed(cells)
    lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r.get('weights') == 'averaged']
    at_24, last = (next(r for r in records if r['step'] == step) for step in (24, 32))
    shown = re.search(r'top-1 on 360 images: (.*)', text)
    assert float(shown[1]) == pytest.approx(at_24['top1'], abs=1e-4)
    # Of the run that was resumed, and of the fine-tuning.
    assert f'final test, averaged weights: top-1 {last["top1"]:.4f}' in text
    tuned = json.loads((folder / 'tuned' / 'metrics.jsonl').read_text().splitlines()[-1])
    assert tuned['step'] == 60
    assert f'final val, averaged weights: top-1 {tuned["top1"]:.4f}' in text


@pytest.mark.slow
@only('executed', 'from_keras_to_flax')
def test_it_prints_the_result_of_its_training(executed):
    cells, folder = executed
    text = printed(cells)
    last = json.loads((folder / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    assert (last['step'], last['weights']) == (24, 'averaged')
    assert f'final test, averaged weights: top-1 {last["top1"]:.4f}' in text
    shown = re.search(r'top-1 on 360 images: (.*)', text)
    assert float(shown[1]) == pytest.approx(last['top1'], abs=1e-4)


@pytest.mark.slow
def test_its_images_show_something(executed, request):
    cells, _ = executed
    count = {
        'xception': 4,  # predictions, filters, maps, curves
        'from_keras_to_flax': 5,  # convolutions, network, two graphs, curves, predictions
    }[request.node.callspec.params['executed']]
    assert len(images(cells)) == count
    for image in images(cells):
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape[1] > 500
        assert pixels.std() > 10


@each_notebook
def test_the_notebook_holds_the_outputs_of_a_whole_run(notebook):
    cells = read(notebook).cells
    nbformat.validate(read(notebook))
    text = printed(cells)
    for value in {
        'xception': ('184,194 parameters',),
        'from_keras_to_flax': ('1,728 {', '219 {', '22,855,952 parameters', '184,194 parameters'),
    }[notebook]:
        assert value in text
    assert 'final test, averaged weights: top-1' in text
    assert 'Error' not in text
    assert (FOLDER / f'{notebook}.ipynb').stat().st_size < 600_000


def test_the_first_cell_is_the_same_in_all_notebooks():
    installations = {
        next(c.source for c in read(notebook).cells if c.cell_type == 'code')
        for notebook in NOTEBOOKS
    }
    assert len(installations) == 1
