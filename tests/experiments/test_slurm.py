"""Jobs, by submitit's executor for one machine; a Slurm there is not."""

import sys
import threading
import time

import pytest
from programs import CACHE

from experiments import studies
from experiments.studies import runs, slurm, study
from xception_flax.runtime.errors import UserError

SMALL = {'model': 'lenet5', 'image_size': 32, 'eval_steps': 4, 'batch_size': 64}


@pytest.fixture
def run(tmp_path):
    variants = study.grid('configs/digits.py', {'total_steps': (4,)}, overrides=SMALL)
    (found,) = runs.runs(study.Study('', variants, studies.ACCURACY), tmp_path)
    return found


def test_a_run_is_a_job(run, tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', CACHE)
    ((submitted, job),) = slurm.submit([run], tmp_path / 'slurm', {'timeout_min': 5}, 'local')
    assert submitted is run
    assert job.result() is None
    assert run.standing().done
    assert list(slurm.submit([run], tmp_path / 'slurm', {}, 'local')) == []


def test_a_job_that_has_to_go_lets_its_run_save_and_asks_to_be_queued_again(tmp_path):
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


def test_a_job_fails_as_its_run_does():
    with pytest.raises(RuntimeError, match='ended with status 3'):
        slurm.Job([sys.executable, '-c', 'raise SystemExit(3)'])()


def test_what_is_missing_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(UserError, match='needs submitit: pip install'):
        next(slurm.submit([run], tmp_path, {}))
