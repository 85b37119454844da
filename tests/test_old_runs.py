"""A run that version 0.1.0 wrote (commit 8b32415, before the package was laid out anew).

`data/run_0.1.0` has the folder of the run after 12 steps, the probabilities that version 0.1.0 gave
for three images, and its metrics of two more steps.
"""

import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

import xception_flax

DATA = pathlib.Path(__file__).parent / 'weights' / 'data' / 'run_0.1.0'
EXPECTED = json.loads((DATA / 'expected.json').read_text())


@pytest.fixture(scope='module')
def old_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('old')
    with tarfile.open(DATA / 'run.tar.gz') as archive:
        archive.extractall(folder, filter='data')
    return folder / 'run'


@pytest.mark.parametrize('weights', ['averaged', 'live'])
def test_it_predicts_the_same(old_run, weights):
    net = xception_flax.load(old_run, weights=weights)
    assert net.class_names == tuple('0123456789')
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    for prediction, expected in zip(net.predict(list(images), 10), EXPECTED[weights], strict=True):
        found = {label.index: label.probability for label in prediction.labels}
        # Probabilities of classes differ by 1e-3 and more, those of the two weights by 1e-4.
        assert found == pytest.approx(dict(enumerate(expected)), abs=2e-6)


@pytest.mark.slow
def test_it_resumes(old_run, program, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(old_run, workdir)
    output = program(
        '-m', 'xception_flax.main', '--config=configs/digits.py', '--config.batch_size=64',
        '--config.total_steps=14', '--config.eval_steps=2', '--config.log_steps=1',
        '--config.xception.width=0.015625', '--config.xception.middle_repeats=1',
        '--config.keep_last=1', '--config.keep_best=0', '--config.schedule.name=constant',
        '--config.schedule.warmup_steps=1', '--config.schedule.learning_rate=0.01',
        f'--workdir={workdir}',
    )  # fmt: skip
    assert 'resuming from the checkpoint of step 12' in output
    assert 'changed since the last start: config.total_steps: 12 -> 14' in output
    entries = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    found = [entry for entry in entries if entry['step'] > 12]
    assert len(found) == len(EXPECTED['continued']) == 4
    for ours, theirs in zip(found, EXPECTED['continued'], strict=True):
        for key, value in theirs.items():
            # Two steps of float32 in another order of sums.
            exact = isinstance(value, str | int)
            assert ours[key] == (value if exact else pytest.approx(value, rel=1e-3)), key
