"""Jobs, by submitit's executor for one machine; there is no Slurm here."""

import sys
import threading
import time

import pytest
from helpers import CACHE

from experiments import studies
from experiments.studies import slurm, study, trials
from xception_flax.base.errors import UserError

SMALL = {'model': 'lenet5', 'image_size': 32, 'eval_steps': 4, 'batch_size': 64}


@pytest.fixture
def trial(tmp_path):
    variants = study.grid('configs/digits.py', {'total_steps': (4,)}, overrides=SMALL)
    (found,) = trials.trials(study.Study('', variants, studies.ACCURACY), tmp_path)
    return found


def test_a_run_is_a_job_until_it_is_done(trial, tmp_path, monkeypatch):
    file = tmp_path / 'ran'
    command = [sys.executable, '-c', f'open({str(file)!r}, "w")']
    monkeypatch.setattr(trials.Trial, 'command', command)
    ((submitted, job),) = slurm.submit([trial], tmp_path / 'slurm', {'timeout_min': 5}, 'local')
    assert submitted is trial
    assert job.result() is None
    assert file.exists()
    done = trials.Standing(4, 4, {}, True, ())
    monkeypatch.setattr(trials.Trial, 'standing', lambda self: done)
    assert list(slurm.submit([trial], tmp_path / 'slurm', {}, 'local')) == []


@pytest.mark.slow
def test_a_job_trains_its_run(trial, tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', CACHE)
    ((_, job),) = slurm.submit([trial], tmp_path / 'slurm', {'timeout_min': 5}, 'local')
    assert job.result() is None
    assert trial.standing().done
    assert list(slurm.submit([trial], tmp_path / 'slurm', {}, 'local')) == []


def test_a_preempted_job_lets_its_run_save_and_is_queued_again(tmp_path):
    ready, saved = tmp_path / 'ready', tmp_path / 'saved'
    script = (
        'import pathlib, signal, sys, time\n'
        f'save = lambda *_: (pathlib.Path({str(saved)!r}).touch(), sys.exit(0))\n'
        'signal.signal(signal.SIGTERM, save)\n'
        f'pathlib.Path({str(ready)!r}).touch()\n'
        'time.sleep(60)'
    )
    job = slurm.Job([sys.executable, '-c', script])
    thread = threading.Thread(target=job)
    thread.start()
    while not ready.exists():
        time.sleep(0.01)
    again = job.checkpoint()
    assert saved.exists()
    assert again.function.command == job.command
    thread.join()


def test_a_job_fails_if_its_run_does():
    with pytest.raises(RuntimeError, match='ended with status 3'):
        slurm.Job([sys.executable, '-c', 'raise SystemExit(3)'])()


def test_a_missing_submitit_is_reported(trial, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(UserError, match='needs submitit: pip install'):
        next(slurm.submit([trial], tmp_path, {}))
