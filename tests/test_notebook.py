"""The Colab notebook: its cells run, on a run that is made here."""

import base64
import json
import re
import subprocess
import sys

import cv2
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
from helpers import CACHE, DIGITS, ROOT, random_variables, small_config

from xception_flax import Trained
from xception_flax.models import build_model

NOTEBOOK = ROOT / 'experiments' / 'colab' / 'xception.ipynb'
SHORTER = list(DIGITS[3:])


def test_its_cells_run_and_its_commands_are_understood(tmp_path, monkeypatch, program):
    """In this process, with an untrained network and without the trainings."""
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
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, 'run', note)
        patch.chdir(NOTEBOOK.parent)
        patch.delitem(sys.modules, 'tensorflow', raising=False)  # which the cells must not import
        names = {}
        for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
            if cell.cell_type == 'code':
                exec(cell.source.replace('%matplotlib inline', ''), names)
            if 'settings' in cell.metadata.get('tags', ()):
                names.update(settings)
    assert len(plt.get_fignums()) == 2  # filters, maps
    plt.close('all')
    trainings = [command for command in commands if 'xception_flax.main' in command]
    assert len(trainings) == 2  # to resume, to fine-tune
    for command in trainings:  # with an error behind the flags, and before any work
        output = program(*command, '--config.batch_size=0', status=1)
        assert output == 'error: config.batch_size is 0; it must be between 1 and 16777216\n'


@pytest.fixture(scope='module')
def executed(tmp_path_factory, program):
    """The notebook's cells after the run, and its folder."""
    folder = tmp_path_factory.mktemp('notebook')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [c for c in notebook.cells if 'settings' in c.metadata.get('tags', ())]
    settings.source = (
        f'WORKDIR = {str(folder / "run")!r}\nFINETUNED = {str(folder / "tuned")!r}\n'
        f'SHORTER = {SHORTER}\nMORE_STEPS = 8\n'
    )
    program(*DIGITS, f'--workdir={folder}/run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_COMPILATION_CACHE_DIR', CACHE)
        patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={'metadata': {'path': str(NOTEBOOK.parent)}}
        )
        client.execute()  # raises where a cell does
    return notebook.cells, folder


def printed(cells):
    return ''.join(o.text for c in cells for o in c.get('outputs', ()) if o.output_type == 'stream')


@pytest.mark.slow
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
def test_its_images_show_something(executed):
    cells, _ = executed
    data = [o['data'] for c in cells for o in c.get('outputs', ()) if 'data' in o]
    images = [base64.b64decode(d['image/png']) for d in data if 'image/png' in d]
    assert len(images) == 4  # predictions, filters, maps, curves
    for image in images:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape[1] > 500
        assert pixels.std() > 10


def test_the_notebook_holds_the_outputs_of_a_whole_run():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    text = printed(cells)
    assert 'final test, averaged weights: top-1' in text
    assert 'Error' not in text
    assert NOTEBOOK.stat().st_size < 600_000
