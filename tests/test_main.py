"""Whole runs on real data, as a user starts them."""

import ast
import json

import cv2
import jax
import numpy as np
import pytest
from helpers import DIGITS, ROOT, entries, write_class_folders

import xception_flax
from xception_flax.data import sources

PROFILE = '--config.profile_steps=3'


@pytest.fixture(scope='module')
def finished(tmp_path_factory, program):
    """The folder of a run that was never stopped, and what it printed."""
    workdir = tmp_path_factory.mktemp('runs') / 'digits'
    return workdir, program(*DIGITS, PROFILE, f'--workdir={workdir}', fresh=True)


def test_a_run_leaves_its_numbers_its_curves_and_its_settings(finished):
    workdir, output = finished
    found = entries(workdir)
    assert [r['step'] for r in found if r['split'] == 'train'] == list(range(1, 25))
    evaluations = [(r['step'], r['weights']) for r in found if r['split'] == 'test']
    assert evaluations == [(s, w) for s in (8, 16, 24) for w in ('live', 'averaged')]
    assert {r['examples'] for r in found if r['split'] == 'test'} == {360}
    assert {'loss', 'top1', 'learning_rate', 'gradient_norm'} <= set(found[0])
    assert cv2.imread(str(workdir / 'curves.png')).shape == (480, 1200, 3)
    config = json.loads((workdir / 'config.json').read_text())
    assert (config['total_steps'], config['total_epochs']) == (24, None)
    assert config['dataset']['num_classes'] == 10
    assert config['dataset']['num_examples'] == 1437
    assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == [8, 16, 24]
    assert list((workdir / 'tensorboard').glob('events*'))
    (trace,) = (workdir / 'tensorboard' / 'plugins' / 'profile').glob('*/*.xplane.pb')
    assert trace.stat().st_size > 10_000
    final = found[-1]
    assert (
        f'final test, averaged weights: top-1 {final["top1"]:.4f}  top-5 {final["top5"]:.4f}  '
        f'loss {final["loss"]:.4f}  (360 examples), after '
    ) in output
    assert str(workdir) in output
    assert '1,437 train and 360 test examples, 10 classes' in output


def test_a_finished_run_prints_its_result_and_changes_nothing(finished, program):
    workdir, _ = finished
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    output = program(*DIGITS, PROFILE, f'--workdir={workdir}')
    assert 'this run is complete' in output
    assert 'final test, averaged weights' in output
    assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before


def test_the_reported_accuracy_is_that_of_the_checkpoint(finished):
    workdir, _ = finished
    net = xception_flax.load(workdir)
    source = sources.load(net.config, 'test')
    x = np.stack([cv2.resize(image, (16, 16)) for image in source.images])  # bilinear
    x = np.repeat(x[..., None], 3, -1) / 127.5 - 1
    logits = jax.jit(net.model.apply)(net.variables, x)
    top1 = np.mean(np.argmax(logits, 1) == source.labels)
    assert top1 == pytest.approx(entries(workdir)[-1]['top1'], abs=1e-6)


def test_evaluate_measures_another_split_by_another_config(finished, program):
    workdir, _ = finished
    output = program(
        '-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--config=configs/digits.py',
        '--config.dataset.eval_split=train', '--config.xception.residual=False',
    )  # fmt: skip
    assert output.count('(1,437 examples)') == 2


def test_evaluate_measures_the_same(finished, program):
    workdir, _ = finished
    output = program('-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--step=16')
    for entry in entries(workdir):
        if entry['step'] == 16 and 'weights' in entry:
            assert f'{entry["weights"]} weights: top-1 {entry["top1"]:.4f}' in output


@pytest.mark.slow
def test_evaluate_changes_settings_of_the_run_without_a_config_file(finished, program):
    workdir, _ = finished
    evaluate = ('-m', 'xception_flax.evaluate', f'--workdir={workdir}')
    expected = program(*evaluate)
    split = '--config.dataset.eval_split=train'
    output = program(*evaluate, split)
    assert output.count('(1,437 examples)') == 2
    assert program(*evaluate, f'--config={workdir}/config.json') == expected
    assert program(*evaluate, f'--config={workdir}/config.json', split) == output
    # The images stay the network's unless the command line says otherwise.
    assert program(*evaluate, '--config=configs/digits.py', split) == output
    assert program(*evaluate, '--config.image_size=24') != expected
    output = program(*evaluate, '--config.image_sise=24', status=1)
    assert (
        output == 'error: there is no setting config.image_sise; did you mean config.image_size?\n'
    )


def test_evaluate_refuses_classes_of_other_names(finished, program, tmp_path):
    workdir, _ = finished
    folder = write_class_folders(tmp_path / 'data', {'val': 1}, classes=10)
    (folder / 'val' / '3').rename(folder / 'val' / '31')
    output = program(
        '-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--config.dataset.source=folder',
        f'--config.dataset.data_dir={folder}', '--config.dataset.eval_split=val', status=1,
    )  # fmt: skip
    assert output.endswith(
        "error: the data has other classes than the network: class 3 is '31' there, and '3' in "
        'training\n'
    )


def test_compiled_programs_are_kept_beside_the_workdir(finished, program):
    workdir, _ = finished
    args = ('-m', 'xception_flax.evaluate', f'--workdir={workdir}')
    program(*args, JAX_COMPILATION_CACHE_DIR=None)
    assert any((workdir.parent / '.compiled').iterdir())


@pytest.mark.slow
def test_a_folder_of_class_folders_trains(program, tmp_path):
    write_class_folders(tmp_path / 'data', {'train': 12, 'val': 5}, classes=10)
    output = program(
        *DIGITS, '--config.dataset.source=folder', f'--config.dataset.data_dir={tmp_path}/data',
        '--config.dataset.eval_split=val', '--config.augment.crop=random',
        '--config.eval_steps=24', f'--workdir={tmp_path}/run',
    )  # fmt: skip
    assert '120 train and 50 val examples, 10 classes' in output
    found = entries(tmp_path / 'run')
    assert [r['examples'] for r in found if 'weights' in r] == [50, 50]
    # In so few steps the running statistics lag behind; those of the batch do not.
    assert max(r['top1'] for r in found if r['split'] == 'train') > 0.9  # chance: 0.1


@pytest.mark.slow
def test_a_run_ends_when_evaluations_get_no_better(program, tmp_path):
    run = (
        *DIGITS, '--config.schedule.learning_rate=0.0', '--config.ema_decay=0.0',
        '--config.frozen_statistics=True', '--config.eval_steps=2', f'--workdir={tmp_path}/run',
    )  # fmt: skip
    output = program(*run, '--config.patience=2')
    assert 'ends at step 6: no better top-1 in the last 2 evaluations (config.patience)' in output
    assert [r['step'] for r in entries(tmp_path / 'run') if 'weights' in r] == [2, 4, 6]
    again = program(*run, '--config.patience=2')
    assert 'this run is complete: its newest checkpoint is of step 6.' in again
    more = program(*run, '--config.patience=3')  # more patience goes on
    assert 'resuming from the checkpoint of step 6' in more
    assert 'ends at step 8' in more


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['--config.batch_size=100'], 'cannot be divided over 8 devices'),
        (['--config.dataset.num_classes=1000'], 'the data has 10 classes'),
        (['--config.best=top_1'], "config.best is 'top_1'; did you mean 'top1'?"),
        (['--config.best=map100_pictures'], 'does not apply to this data; choose from'),
        (['--config.image_size=4'], 'config.image_size is 4, too small'),
        (['--config.dataset.eval_split=validation'], "digits has no split 'validation'"),
    ],
)
def test_mistakes_end_in_one_line_before_any_work(program, tmp_path, args, says):
    workdir = tmp_path / 'run'
    output = program(*DIGITS, *args, f'--workdir={workdir}', devices=8, status=1)
    assert says in output
    assert output.startswith('error: ')
    assert output.count('\n') == 1
    assert not workdir.exists()


def test_a_missing_flag_is_an_error(program):
    assert '--workdir is missing' in program(*DIGITS, status=1)
    assert '--config is missing' in program(*DIGITS[:2], '--workdir=/tmp/nothing', status=1)


PROGRAMS = sorted(file.stem for file in (ROOT / 'xception_flax').glob('[a-z]*.py'))


@pytest.mark.parametrize('flag', ['--help', '-h'])
@pytest.mark.parametrize('name', PROGRAMS)
def test_help_shows_what_a_program_does_and_succeeds(program, name, flag):
    source = (ROOT / 'xception_flax' / f'{name}.py').read_text()
    words = ast.get_docstring(ast.parse(source)).split()
    output = program('-m', f'xception_flax.{name}', flag, status=0)
    assert ' '.join(words) in ' '.join(output.split())


def test_help_lists_the_flags_of_the_program(program):
    output = program('-m', 'xception_flax.main', '--help')
    for flag in ('config', 'workdir', 'coordinator'):
        assert f'--{flag}:' in output
