"""Runs that are killed, stopped and hindered."""

import json
import os
import resource
import shutil
import signal
import threading
import time

import cv2
import jax
import numpy as np
import pytest
from programs import start
from test_main import records, weights

import xception_flax

RUN = (
    '-m', 'xception_flax.main', '--config=configs/digits.py', '--config.total_steps=60',
    '--config.eval_steps=20', '--config.checkpoint_steps=10', '--config.log_steps=1',
    '--config.batch_size=16', '--config.xception.middle_repeats=0', '--config.xception.width=0.05',
    '--config.keep_last=9', '--config.schedule.name=constant', '--config.schedule.warmup_steps=1',
)  # fmt: skip
AGAIN = 75


class Watched:
    """A run whose lines are read as they come."""

    def __init__(self, *args, **kwargs):
        self.process = start(*args, **kwargs)
        self.output = ''
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text, count=1, seconds=120):
        deadline = time.monotonic() + seconds
        while self.output.count(text) < count:
            assert time.monotonic() < deadline, self.output
            assert self.process.poll() is None, self.output + self.process.stderr.read()
            time.sleep(0.005)

    def end(self, status):
        self.process.wait(120)
        assert self.process.returncode == status, self.output + self.process.stderr.read()
        return self.output


@pytest.fixture(scope='module')
def whole(tmp_path_factory, program):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp('whole')
    program(*RUN, f'--workdir={workdir}')
    return workdir


def assert_the_same(workdir, whole):
    assert records(workdir) == records(whole)
    jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(whole))


def test_a_run_stopped_and_killed_at_every_stage_ends_with_the_same_bits(whole, program, tmp_path):
    args = (*RUN, f'--workdir={tmp_path}')
    for number, when, count in (
        (signal.SIGTERM, 'examples, 10 classes', 1),  # starting
        (signal.SIGKILL, 'compiling the training step', 1),
        (signal.SIGKILL, 'loss', 4),  # in training
        (signal.SIGINT, 'loss', 6),
        (signal.SIGKILL, '0/60  loss', 1),  # saving
        (signal.SIGTERM, 'test, live', 1),  # between two kinds of weights
    ):
        run = Watched(*args)
        run.wait_for(when, count)
        run.process.send_signal(number)
        if number == signal.SIGKILL:
            run.process.wait()
            continue
        output = run.end(AGAIN)
        step = int(output.split('stopped at step ')[1].split(',')[0])
        assert (tmp_path / 'checkpoints' / str(step)).is_dir()
    program(*args)
    assert_the_same(tmp_path, whole)


def test_a_signal_in_the_evaluation_gives_it_up_and_it_is_made_up_for(program, tmp_path):
    # 90 batches for two kinds of weights: long enough to be met.
    args = (*RUN, f'--workdir={tmp_path}', '--config.dataset.eval_split=train')
    run = Watched(*args)
    run.wait_for('step 20/60')
    time.sleep(0.3)
    run.process.send_signal(signal.SIGTERM)
    assert 'stopped at step 20,' in run.end(AGAIN)
    assert not any('weights' in r for r in records(tmp_path))
    program(*args)
    found = [(r['step'], r['weights'], r['examples']) for r in records(tmp_path) if 'weights' in r]
    assert found == [(s, w, 1437) for s in (20, 40, 60) for w in ('live', 'averaged')]


def test_a_second_signal_ends_at_once_and_leaves_what_was_saved(whole, program, tmp_path):
    run = Watched(*RUN, f'--workdir={tmp_path}')
    run.wait_for('step 11/60')
    while not (tmp_path / 'checkpoints' / '10').exists():
        time.sleep(0.005)
    run.process.send_signal(signal.SIGSTOP)
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGCONT)
    run.process.wait(20)
    assert run.process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    found = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
    output = program(*RUN, f'--workdir={tmp_path}')
    assert f'going on from the checkpoint of step {found[-1]}' in output
    assert_the_same(tmp_path, whole)


def test_a_second_run_in_a_workdir_is_refused(program, tmp_path):
    run = Watched(*RUN, f'--workdir={tmp_path}')
    run.wait_for('compiling')
    output = program(*RUN, f'--workdir={tmp_path}', status=1)
    assert f'error: {tmp_path} is in use by another training' in output
    run.process.kill()
    run.process.wait()


def test_a_run_goes_on_with_harmless_changes_and_refuses_others(whole, program, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    args = ('--config.optimizer.name=adamw', '--config.xception.residual=False', '--config.seed=3')
    output = program(*RUN, *args, f'--workdir={workdir}', status=1)
    for change in (
        "config.optimizer.name: 'sgd' -> 'adamw'",
        'config.xception.residual: True -> False',
        'config.seed: 0 -> 3',
    ):
        assert change in output
    assert output.splitlines()[-1].startswith(f'error: {workdir} holds a run of other settings')
    assert 'Traceback' not in output
    assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before
    output = program(
        *RUN, '--config.total_steps=62', '--config.log_steps=2', '--config.optimizer.clip_norm=1',
        f'--workdir={workdir}',
    )  # fmt: skip
    assert 'changed since the last start: config.total_steps: 60 -> 62' in output
    assert 'changed since the last start: config.log_steps: 1 -> 2' in output
    assert 'changed since the last start: config.optimizer.clip_norm: 0.0 -> 1.0' in output
    assert records(workdir)[-1]['step'] == 62


def test_a_run_goes_on_with_the_same_number_of_examples_alone(program, tmp_path):
    for split in ('train', 'val'):
        for label in range(10):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for i in range(2):
                cv2.imwrite(str(folder / f'{i}.png'), np.full((20, 20), 20 * label + i, np.uint8))
    args = (
        *RUN, '--config.dataset.source=folder', f'--config.dataset.data_dir={tmp_path}',
        '--config.dataset.eval_split=val', f'--workdir={tmp_path}/run',
    )  # fmt: skip
    program(*args, '--config.total_steps=2')
    (tmp_path / 'train' / '3' / '1.png').unlink()
    output = program(*args, '--config.total_steps=4', status=1)
    assert 'error: train has 19 examples, but had 20 when the run' in output


def test_a_full_disk_ends_in_one_line_and_spares_the_last_checkpoint(whole, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    for step in range(20, 61, 10):
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    process = start(*RUN, '--config.eval_steps=60', f'--workdir={workdir}')
    # No file may grow beyond this, as on a disk that is almost full.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    # Around it, and into it, tensorstore's thread may tell how writing failed.
    assert f'error: a checkpoint could not be written to {workdir}/checkpoints' in err
    assert 'the newest whole one is of step 10' in err
    assert err.count('error: a checkpoint') == 1
    ours, theirs = (xception_flax.load_checkpoint(d, 10)[1] for d in (workdir, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize('place', ['a file', 'not writable'])
def test_a_workdir_that_cannot_be_made_is_told(program, tmp_path, place):
    parent = tmp_path / 'parent'
    if place == 'a file':
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
    """A learning rate and a weight decay that multiply the weights by -10,000 a step."""

    ARGS = (
        *RUN, '--config.schedule.learning_rate=1000', '--config.optimizer.weight_decay=10',
    )  # fmt: skip

    def test_stops_and_tells_where(self, program, tmp_path):
        output = program(*self.ARGS, f'--workdir={tmp_path}', status=1)
        last = output.splitlines()[-1]
        assert last.startswith('error: step ')
        assert 'is not finite' in last
        assert 'digits/train[' in last
        report = json.loads((tmp_path / 'nonfinite.json').read_text())
        assert f'step {report["step"]} is not finite' in last
        assert len(report['examples']) == 16
        assert not (tmp_path / 'checkpoints' / str(report['step'])).exists()

    def test_skips_up_to_a_number_in_a_row(self, program, tmp_path):
        output = program(
            *self.ARGS, '--config.nonfinite=skip', '--config.nonfinite_limit=4',
            f'--workdir={tmp_path}', status=1,
        )  # fmt: skip
        assert output.count('is skipped: loss') >= 3
        assert '4 in a row' in output.splitlines()[-1]
        assert [r for r in records(tmp_path) if r.get('skipped')]
