"""Processes that load images: the batches are those of one process, and nothing is left behind."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import RUN, default_config, start
from small_imagenet import jpeg, two_tars, write

from xception_flax.base.errors import UserError
from xception_flax.data import pipeline, sources, workers
from xception_flax.data.reader import Reader
from xception_flax.training.checks import check_values

WITH_TWO = '--config.loader_processes=2'
SHARED = pathlib.Path('/dev/shm')
SLOW = pytest.mark.slow
linux = pytest.mark.skipif(not SHARED.is_dir(), reason='needs /dev/shm and /proc')


@pytest.fixture
def config(tmp_path):
    images = {f'train/{name}/{i}.jpg': jpeg(i) for name in 'ab' for i in range(10)}
    write(tmp_path, images | {'train/a/11.jpg': b'damaged', 'train/b/7.jpg': b''})
    return default_config(
        dataset__source='folder',
        dataset__data_dir=str(tmp_path),
        image_size=32,
        batch_size=8,
        max_unreadable=0.2,
        loader_threads=2,
    )


def batches(config, kind, number, processes):
    config.loader_processes = processes
    reader = Reader(sources.load(config, 'train'), config.max_unreadable)
    made = kind(reader, config)
    try:
        return list(itertools.islice(made, number)), reader
    finally:
        made.close()


def training_from_3(reader, config):
    return pipeline.training_batches(reader, config, 3)


@pytest.mark.parametrize(
    ('kind', 'number'),
    [(training_from_3, 7), pytest.param(pipeline.evaluation_batches, 9, marks=SLOW)],
)
def test_any_number_of_processes_gives_the_same_batches(config, kind, number, caplog):
    alone, reader = batches(config, kind, number, 0)
    assert len(reader.unreadable) == 2
    for processes in (1, 3):
        caplog.clear()
        several, other = batches(config, kind, number, processes)
        assert len(several) == len(alone)
        for ours, theirs in zip(several, alone, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                assert ours[name].dtype == value.dtype
                np.testing.assert_array_equal(ours[name], value)
        assert other.unreadable == reader.unreadable
        assert len(caplog.records) == 2  # each unreadable image once


def test_errors_of_a_process_arrive(config):
    config.max_unreadable = 0.0
    with pytest.raises(UserError, match='1 of 21 images cannot be read, more than'):
        batches(config, training_from_3, 9, 2)


@pytest.mark.parametrize('source', ['digits', 'synthetic', 'imagenet'])
@SLOW
def test_every_source_goes_to_other_processes(tmp_path, source):
    two_tars(tmp_path / 'copy')
    config = default_config(
        dataset__source=source,
        dataset__data_dir=str(tmp_path / 'copy'),
        dataset__index=str(tmp_path / 'index'),
        image_size=32,
        batch_size=4,
    )
    (alone, _), (several, _) = (batches(config, training_from_3, 2, n) for n in (0, 1))
    for ours, theirs in zip(several, alone, strict=True):
        np.testing.assert_array_equal(ours['image'], theirs['image'])
        np.testing.assert_array_equal(ours['label'], theirs['label'])


GIGABYTE = 10**9


@pytest.mark.parametrize(
    ('cores', 'examples', 'free', 'tasks', 'quota', 'expected'),
    [
        (4, 10**6, 100 * GIGABYTE, '', 'max 100000', 0),
        (8, 10**6, 100 * GIGABYTE, '', 'max 100000', 2),
        (112, 10**6, 100 * GIGABYTE, '', 'max 100000', 28),
        (224, 10**6, 100 * GIGABYTE, '', 'max 100000', 32),
        (8, 9999, 100 * GIGABYTE, '', 'max 100000', 0),
        (112, 10**6, 100 * GIGABYTE, '8(x4)', 'max 100000', 3),  # Slurm, eight tasks a node
        (112, 10**6, 100 * GIGABYTE, '', '1600000 100000', 4),  # a container of 16 cores
        (112, 10**6, 64 * 2**20, '', 'max 100000', 0),  # docker's shared memory
        (112, 10**6, 10 * GIGABYTE, '', 'max 100000', 7),  # 5 batches of 268 MB for each
    ],
)
def test_the_default_goes_by_cores_images_and_memory(
    monkeypatch, cores, examples, free, tasks, quota, expected
):
    monkeypatch.setattr(workers.os, 'sched_getaffinity', lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(workers, '_quota', lambda: quota)
    monkeypatch.setattr(workers, '_memory', lambda: free)
    for name in workers.TASKS:
        monkeypatch.delenv(name, raising=False)
    if tasks:
        monkeypatch.setenv('SLURM_TASKS_PER_NODE', tasks)
    config = default_config(batch_size=2000)
    assert workers.number(config, examples, processes=2) == expected
    config.loader_processes = 3
    assert workers.number(config, examples) == 3


@linux
def test_waiting_batches_take_a_quarter_of_the_memory_at_most():
    with open('/proc/meminfo') as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < workers._memory() <= total / 4 * 1.001


def children(pid):
    found = subprocess.run(['pgrep', '-P', str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def loaders(pid):
    """The processes of a run that load images, not the tracker of shared memory."""
    lines = {child: pathlib.Path(f'/proc/{child}/cmdline').read_bytes() for child in children(pid)}
    return [child for child, line in lines.items() if b'spawn_main' in line]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] == 'Z'
    except FileNotFoundError:
        return True


@linux
@SLOW
@pytest.mark.parametrize('how', ['end', 'SIGTERM', 'SIGKILL', 'SIGINT to all', 'a loader dies'])
def test_whatever_ends_a_run_leaves_nothing_behind(tmp_path, how):
    before = set(SHARED.iterdir())
    steps = 30 if how == 'end' else 100_000
    process = start(
        *RUN, WITH_TWO, f'--config.total_steps={steps}', '--config.eval_steps=100000',
        f'--workdir={tmp_path}/run', devices=1,
    )  # fmt: skip
    metrics = tmp_path / 'run' / 'metrics.jsonl'
    wait_until(lambda: metrics.exists() and metrics.read_text().count('\n') > 12)
    mine = loaders(process.pid)
    tracked = children(process.pid)
    if how == 'SIGTERM':
        process.send_signal(signal.SIGTERM)
    elif how == 'SIGINT to all':  # as a terminal sends it
        for pid in (process.pid, *tracked):
            os.kill(pid, signal.SIGINT)
    elif how == 'SIGKILL':
        process.kill()
    elif how == 'a loader dies':
        os.kill(mine[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    expected = {'end': 0, 'SIGKILL': -9, 'a loader dies': 1}.get(how, 75)
    assert process.returncode == expected, out + err
    if how == 'a loader dies':
        assert 'error: a process that loads images has died' in err
    elif how != 'end':
        assert len(mine) == 2
    wait_until(lambda: all(map(is_gone, tracked)))
    wait_until(lambda: set(SHARED.iterdir()) <= before)
    if how not in ('SIGKILL', 'a loader dies'):  # then Python frees the memory, and says so
        assert 'leaked' not in err
    assert 'Traceback' not in err


SCRIPT = """
from xception_flax import config as configs
from xception_flax.data import pipeline, sources
from xception_flax.data.reader import Reader
from xception_flax.training.checks import check_values

config = configs.default()
config.dataset.source, config.image_size, config.loader_processes = 'digits', 16, 2
batches = pipeline.training_batches(Reader(sources.load(config, 'train'), 0.0), config, 0)
print(next(batches)['label'].shape)
batches.close()
"""
GUARDED = (
    'def main():' + SCRIPT.replace('\n', '\n    ') + "\nif __name__ == '__main__':\n    main()\n"
)


@pytest.mark.parametrize(
    'how',
    ['unguarded', *(pytest.param(how, marks=SLOW) for how in ('standard input', 'guarded'))],
)
def test_a_script_loads_in_processes_or_says_why_not(tmp_path, how):
    write(tmp_path, {'script.py': (GUARDED if how == 'guarded' else SCRIPT).encode()})
    args = ['-'] if how == 'standard input' else [str(tmp_path / 'script.py')]
    found = subprocess.run(
        [sys.executable, *args], input=SCRIPT, capture_output=True, text=True, timeout=120
    )
    if how == 'guarded':
        assert (found.returncode, found.stdout) == (0, '(32,)\n'), found.stderr
        # Grain cannot profile processes with an older JAX.
        said = [line for line in found.stderr.splitlines() if 'worker profiling' not in line]
        assert not said
    else:
        assert found.returncode == 1
        assert 'no process could be started to load images' in found.stderr.splitlines()[-1]


def test_the_number_of_processes_has_bounds():
    for number in (-1, 10_000):
        config = default_config(loader_processes=number, total_steps=1)
        with pytest.raises(UserError, match=f'config.loader_processes is {number}; it must be'):
            check_values(config)


def test_the_first_image_of_an_evaluation_may_be_unreadable(config, tmp_path):
    (tmp_path / 'train' / 'a' / '!.jpg').symlink_to('nowhere')
    found, _ = batches(config, pipeline.evaluation_batches, 9, 0)
    assert found[0]['mask'][0] == -1
    assert found[0]['label'].shape == (8,)
