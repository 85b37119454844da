"""The Colab notebook, executed from top to bottom against a checkpoint that is trained here."""

import base64
import json
import re

import cv2
import nbclient
import nbformat
import numpy as np
import pytest
from programs import CACHE, ROOT

NOTEBOOK = ROOT / 'experiments' / 'colab' / 'xception.ipynb'
SHORTER = [
    '--config.total_steps=24', '--config.eval_steps=8', '--config.batch_size=64',
    '--config.xception.middle_repeats=1',
]  # fmt: skip


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
    run = ('-m', 'xception_flax.main', '--config=configs/digits.py', f'--workdir={folder}/run')
    program(*run, *SHORTER)
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


def test_what_it_prints_is_what_the_runs_did(executed):
    cells, folder = executed
    text = printed(cells)
    lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r.get('weights') == 'averaged']
    at_24, last = (next(r for r in records if r['step'] == step) for step in (24, 32))
    shown = re.search(r'top-1 on 360 pictures: (.*)', text)
    assert float(shown[1]) == pytest.approx(at_24['top1'], abs=1e-4)
    assert f'final test accuracy: {last["top1"]:.4f}' in text  # of the run that went on
    tuned = json.loads((folder / 'tuned' / 'metrics.jsonl').read_text().splitlines()[-1])
    assert tuned['step'] == 60
    assert f'final val accuracy: {tuned["top1"]:.4f}' in text


def test_its_pictures_show_something(executed):
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
    assert 'final test accuracy' in text
    assert 'Error' not in text
    assert NOTEBOOK.stat().st_size < 600_000
