"""Runs that are stopped, killed and hindered, and what they leave."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from helpers import AGAIN, RUN, Program, entries, small_config, start, weights

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.training import loop
from xception_flax.training.setup import set_up


@pytest.fixture(scope='module')
def whole(tmp_path_factory, program):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp('whole')
    program(*RUN, f'--workdir={workdir}')
    return workdir


def assert_the_same(workdir, whole):
    assert entries(workdir) == entries(whole)
    jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(whole))


# Signals, and when they come: after some output, the number of times that it is there.
STARTING = signal.SIGTERM, 'examples, 10 classes', 1
COMPILING = signal.SIGKILL, 'compiling the training step', 1
TRAINING = signal.SIGKILL, 'loss', 8
TRAINING_TOO = signal.SIGINT, 'loss', 3
SAVING = signal.SIGKILL, '5/30  ', 1
EVALUATING = signal.SIGTERM, 'test, live', 1  # between two kinds of weights


@pytest.mark.parametrize(
    'stops',
    [
        pytest.param((TRAINING, TRAINING_TOO), id='in training'),
        pytest.param(
            (STARTING, COMPILING, TRAINING, TRAINING_TOO, SAVING, EVALUATING),
            id='at every stage',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_is_stopped_and_killed_ends_with_the_same_bits(whole, program, tmp_path, stops):
    args = (*RUN, f'--workdir={tmp_path}')
    for number, when, count in stops:
        run = Program(*args)
        run.wait_for(when, count)
        if number == signal.SIGKILL:
            run.kill()
            continue
        run.signal(number)
        output = run.end(AGAIN)
        step = int(output.split('stopped at step ')[1].split(',')[0])
        assert (tmp_path / 'checkpoints' / str(step)).is_dir()
    program(*args)
    assert_the_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize('steps', [15, 30])
def test_a_signal_ends_an_evaluation_which_is_done_at_the_next_start(program, tmp_path, steps):
    # 90 batches for two kinds of weights: enough time for a signal.
    args = (
        *RUN, f'--workdir={tmp_path}', '--config.dataset.eval_split=train',
        f'--config.total_steps={steps}',
    )  # fmt: skip
    run = Program(*args)
    run.wait_for(f'step 15/{steps}')
    time.sleep(0.3)
    run.signal(signal.SIGTERM)
    assert 'stopped at step 15,' in run.end(AGAIN)
    assert not any('weights' in e for e in entries(tmp_path))
    program(*args)
    found = [(e['step'], e['weights'], e['examples']) for e in entries(tmp_path) if 'weights' in e]
    evaluated = range(15, steps + 1, 15)
    assert found == [(step, w, 1437) for step in evaluated for w in ('live', 'averaged')]


def stop_twice(workdir):
    """Sends two signals to a run that has a checkpoint; returns the step of the newest one."""
    run = Program(*RUN, f'--workdir={workdir}')
    run.wait_for('step 6/30')
    while not (workdir / 'checkpoints' / '5').exists():
        time.sleep(0.005)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        run.signal(number)
    assert run.status(seconds=20) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    return max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())


def test_a_second_signal_ends_at_once_and_leaves_what_was_saved(tmp_path):
    newest = stop_twice(tmp_path)
    run = Program(*RUN, f'--workdir={tmp_path}')
    run.wait_for('compiling')
    assert f'resuming from the checkpoint of step {newest}' in run.output
    run.kill()


@pytest.mark.slow
def test_a_run_that_was_ended_by_a_second_signal_ends_with_the_same_bits(whole, program, tmp_path):
    stop_twice(tmp_path)
    program(*RUN, f'--workdir={tmp_path}')
    assert_the_same(tmp_path, whole)


def test_a_second_run_in_a_workdir_is_refused(program, tmp_path):
    run = Program(*RUN, f'--workdir={tmp_path}')
    run.wait_for('compiling')
    output = program(*RUN, f'--workdir={tmp_path}', status=1)
    assert f'error: {tmp_path} is in use by another training' in output
    run.kill()


def test_a_run_resumes_with_harmless_changes_and_refuses_others(whole, program, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    args = (
        '--config.optimizer.name=adamw', '--config.xception.residual=False', '--config.seed=3',
        '--config.batch_size=32',
    )  # fmt: skip
    output = program(*RUN, *args, f'--workdir={workdir}', status=1)
    for change in (
        "config.optimizer.name: 'sgd' -> 'adamw'",
        'config.xception.residual: True -> False',
        'config.seed: 0 -> 3',
        'config.batch_size: 16 -> 32',
    ):
        assert change in output
    assert output.splitlines()[-1].startswith(
        f'error: the run in {workdir} was started with other settings'
    )
    assert 'Traceback' not in output
    assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before
    output = program(
        *RUN, '--config.total_steps=32', '--config.log_steps=2', '--config.optimizer.clip_norm=1',
        f'--workdir={workdir}',
    )  # fmt: skip
    assert 'changed since the last start: config.total_steps: 30 -> 32' in output
    assert 'changed since the last start: config.log_steps: 1 -> 2' in output
    assert 'changed since the last start: config.optimizer.clip_norm: 0.0 -> 1.0' in output
    assert entries(workdir)[-1]['step'] == 32


def test_a_run_resumes_only_with_the_same_number_of_examples(tmp_path):
    config = small_config()
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), set_up(config).abstract_state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(dataclasses.replace(state, step=np.int32(2)), 32, examples=1438))
    checkpoints.close()
    with pytest.raises(UserError, match='train has 1,437 examples, but had 1,438 when the run'):
        loop.train(config, tmp_path)


def test_a_full_disk_ends_in_one_line_and_spares_the_last_checkpoint(whole, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    for step in range(10, 31, 5):
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    run = start(*RUN, '--config.eval_steps=30', f'--workdir={workdir}')
    # No file may grow beyond this, as on a disk that is almost full. Every checkpoint has a larger
    # one, its 100 kB of _METADATA; how many files its arrays fill is decided by tensorstore.
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    # Before, after and between its words, a thread of tensorstore may report how writing failed.
    assert f'error: a checkpoint could not be written to {workdir}/checkpoints' in errors
    assert 'the newest whole one is of step 5' in errors
    assert errors.count('error: a checkpoint') == 1
    ours, theirs = (xception_flax.load(d, 5).variables for d in (workdir, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize('kind', ['a file', 'not writable'])
def test_a_workdir_that_cannot_be_made_is_an_error(program, tmp_path, kind):
    parent = tmp_path / 'parent'
    if kind == 'a file':
        parent.write_text('')
    else:
        parent.mkdir(mode=0o500)
        if os.access(parent, os.W_OK):  # root may write anywhere, but not here
            parent = '/proc/sys'
    output = program(*RUN, f'--workdir={parent}/run', status=1)
    last = output.splitlines()[-1]
    assert last.startswith('error: ')
    assert f'{parent}' in last


class TestNotFinite:
    """A learning rate and a weight decay that multiply the weights by -10,000 per step."""

    ARGS = (
        *RUN, '--config.model=lenet5', '--config.image_size=32',
        '--config.schedule.learning_rate=1000', '--config.optimizer.weight_decay=10',
    )  # fmt: skip

    def test_the_run_stops_and_reports_the_step_and_its_examples(self, program, tmp_path):
        output = program(*self.ARGS, f'--workdir={tmp_path}', status=1)
        last = output.splitlines()[-1]
        assert last.startswith('error: step ')
        assert 'is not finite' in last
        assert 'digits/train[' in last
        report = json.loads((tmp_path / 'nonfinite.json').read_text())
        assert f'step {report["step"]} is not finite' in last
        assert len(report['examples']) == 16
        assert not (tmp_path / 'checkpoints' / str(report['step'])).exists()

    def test_steps_are_skipped_up_to_a_number_in_a_row(self, program, tmp_path):
        output = program(
            *self.ARGS, '--config.nonfinite=skip', '--config.nonfinite_limit=4',
            f'--workdir={tmp_path}', status=1,
        )  # fmt: skip
        assert output.count('is skipped: loss') >= 3
        assert '4 in a row' in output.splitlines()[-1]
        assert [r for r in entries(tmp_path) if r.get('skipped')]
