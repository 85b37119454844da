import json
import pathlib
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys

import pytest
from helpers import AGAIN, RUN, Program, environment, small_config

from experiments.faults.store import free_port
from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.runtime import trackers, writers
from xception_flax.training import loop

Rows = list[tuple[int, dict[str, float]]]  # a step and values by name
WANDB = {'WANDB_MODE': 'offline', 'WANDB_ERROR_REPORTING': 'false'}


def identity(workdir: pathlib.Path) -> str:
    return json.loads((workdir / 'tracker.json').read_text())['run']


def newest(rows: Rows) -> dict[tuple[str, int], float]:
    """The values by name and step, but for what depends on the clock; of several the last."""
    return {
        (name, step): value
        for step, values in rows
        for name, value in values.items()
        if not name.endswith(writers.OF_THE_CLOCK)
    }


def written(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
    """The same from `metrics.jsonl`."""
    rows = []
    for entry in writers.read(workdir / 'metrics.jsonl'):
        step, split, weights = (entry.pop(key, '') for key in ('step', 'split', 'weights'))
        prefix = f'{split}/{weights}/' if weights else f'{split}/'
        rows.append((step, {prefix + name: value for name, value in entry.items()}))
    return newest(rows)


def remove_checkpoints(workdir: pathlib.Path, after: int) -> None:
    for folder in (workdir / 'checkpoints').iterdir():
        if folder.name.isdigit() and int(folder.name) > after:
            shutil.rmtree(folder)


def losses(rows: Rows, step: int) -> list[float]:
    return [x['train/loss'] for s, x in rows if s == step and 'train/loss' in x]


def records(folder: pathlib.Path) -> list:
    """What wandb has written offline: records in blocks of 32 KiB, in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob('*.wandb')
    data, position, found, partial = path.read_bytes(), 7, [], b''
    while position + 7 <= len(data):
        room = 2**15 - position % 2**15
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack('<IHB', data[position : position + 7])
        partial += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(partial))
            partial = b''
    return found


def history(found: list) -> Rows:
    rows = []
    for record in found:
        if record.WhichOneof('record_type') == 'history':
            items = record.history.item
            row = {'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            step = row.pop('step')
            rows.append((step, {k: v for k, v in row.items() if k[0] != '_'}))
    return rows


@pytest.mark.slow
def test_trackio_has_the_numbers_of_a_run_that_resumes_from_an_earlier_step(program, tmp_path):
    pytest.importorskip('trackio')
    args = (*RUN, '--config.tracker=trackio', f'--workdir={tmp_path / "my run"}')
    run = Program(*args)
    run.wait_for('loss', 8)
    run.signal(signal.SIGTERM)
    run.end(AGAIN)
    remove_checkpoints(tmp_path / 'my run', 5)
    assert 'resuming from the checkpoint of step 5' in program(*args)
    name = identity(tmp_path / 'my run')
    assert name.startswith('my-run-')
    with sqlite3.connect(tmp_path / 'my run/trackio/xception_flax.db') as database:
        stored = database.execute('SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id')
        found = stored.fetchall()
        configs = database.execute('SELECT run_name, config FROM configs').fetchall()
    assert len({run_id for run_id, *_ in found}) == 1
    assert {run_name for _, run_name, *_ in found} == {name}
    rows = [(step, json.loads(values)) for *_, step, values in found]
    assert newest(rows) == written(tmp_path / 'my run')
    repeated = losses(rows, 6)
    assert len(repeated) == 2
    assert repeated[0] == repeated[1]
    ((run_name, config),) = configs
    assert run_name == name
    assert json.loads(config)['xception']['width'] == 0.05


@pytest.mark.slow
def test_wandb_has_the_numbers_of_a_run_that_is_stopped_changed_and_killed(program, tmp_path):
    pytest.importorskip('wandb')
    args = (*RUN, '--config.tracker=wandb', f'--workdir={tmp_path}')
    run = Program(*args, **WANDB)
    run.wait_for('loss', 8)
    run.signal(signal.SIGTERM)
    run.end(AGAIN)
    remove_checkpoints(tmp_path, 5)
    args = (*args, '--config.schedule.learning_rate=0.02')
    run = Program(*args, **WANDB)
    run.wait_for('loss', 7)
    run.kill()
    program(*args, **WANDB)
    folders = sorted((tmp_path / 'wandb').glob('offline-run-*'))
    starts = [records(folder) for folder in folders]
    runs = [r.run for start in starts for r in start if r.WhichOneof('record_type') == 'run']
    assert len(starts) == 3
    assert {run.run_id for run in runs} == {identity(tmp_path)}
    rates = [
        json.loads(item.value_json)['learning_rate']
        for run in runs
        for item in run.config.update
        if item.key == 'schedule'
    ]
    assert rates[0] == 0.1
    assert set(rates[1:]) == {0.02}
    rows = [row for start in starts for row in history(start)]
    assert newest(rows) == written(tmp_path)
    before, after = losses(rows, 7)[0], losses(rows, 7)[-1]
    assert before != after  # both are kept


UNREACHABLE = """
import pathlib, sys
from xception_flax.runtime import trackers
trackers.START_SECONDS = 2
tracker = trackers.Tracker(sys.argv[1], pathlib.Path(sys.argv[2]), {'seed': 0}, 0, print)
tracker.add({'train/loss': 0.5}, 1)
tracker.close()
"""


@pytest.mark.parametrize('package', ['wandb', 'trackio'])
def test_a_server_that_cannot_be_reached_ends_nothing_and_the_numbers_are_kept(package, tmp_path):
    pytest.importorskip(package)
    address = f'http://127.0.0.1:{free_port()}'
    addresses = {
        'WANDB_BASE_URL': address,
        'WANDB_API_KEY': 40 * 'a',
        'TRACKIO_SERVER_URL': f'{address}/?write_token=a',
    }
    done = subprocess.run(
        [sys.executable, '-c', UNREACHABLE, package, str(tmp_path)],
        env=environment(**addresses, WANDB_ERROR_REPORTING='false'),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f'{package}: {identity(tmp_path)}, ')
    if package == 'wandb':
        assert f'sent later by: wandb sync {tmp_path}/wandb/offline-run-*' in line
        (folder,) = (tmp_path / 'wandb').glob('offline-run-*')
        assert history(records(folder)) == [(1, {'train/loss': 0.5})]
    else:
        with sqlite3.connect(tmp_path / 'trackio/xception_flax.db') as database:
            stored = database.execute('SELECT step, metrics FROM metrics').fetchall()
        assert [(step, json.loads(x)) for step, x in stored] == [(1, {'train/loss': 0.5})]


def fake(monkeypatch, log, finish=lambda: None):
    """Lets the tracker be two functions."""
    for package in ('wandb', 'trackio'):
        monkeypatch.setattr(trackers, f'_start_{package}', lambda *_: (log, finish, 'here'))


def test_a_tracker_that_fails_is_one_line_and_the_files_are_written(monkeypatch, tmp_path):
    sent, lines = [], []

    def log(values, step):
        sent.append(step)
        if step == 2:
            raise ConnectionError('the server\nis gone')

    fake(monkeypatch, log)
    tracker = trackers.Tracker('wandb', tmp_path, {}, 0, lines.append)
    writer = writers.MetricWriter(tmp_path, [], 0, tracker)
    for step in (1, 2, 3):
        writer.write({'step': step, 'split': 'train', 'loss': 0.5})
    writer.sync()
    writer.close()
    assert sent == [1, 2]
    assert lines == [
        f'wandb: {identity(tmp_path)}, here',
        'warning: wandb has failed (the server is gone); nothing is sent to it',
    ]
    assert [entry['step'] for entry in writers.read(tmp_path / 'metrics.jsonl')] == [1, 2, 3]


def test_a_run_keeps_its_name_and_another_folder_has_another(monkeypatch, tmp_path):
    fake(monkeypatch, lambda *_: None)
    first, second = tmp_path / '1/run', tmp_path / '2/run'
    for workdir in (first, second, first):
        workdir.mkdir(parents=True, exist_ok=True)
        before = identity(workdir) if (workdir / 'tracker.json').exists() else None
        trackers.Tracker('wandb', workdir, {}, 0, print).close()
        assert before in (None, identity(workdir))
    assert identity(first) != identity(second)


def test_a_name_begins_with_a_letter_for_command_lines(monkeypatch, tmp_path):
    fake(monkeypatch, lambda *_: None)
    for folder, name in (('é', 'run-'), ('é1', '1-')):
        (tmp_path / folder).mkdir()
        trackers.Tracker('wandb', tmp_path / folder, {}, 0, print).close()
        assert identity(tmp_path / folder).startswith(name)


def test_what_a_killed_start_has_logged_is_logged_again(monkeypatch, tmp_path):
    sent = []
    fake(monkeypatch, lambda _, step: sent.append(step))

    def start(kept: int, *steps: int, package='wandb') -> writers.MetricWriter:
        tracker = trackers.Tracker(package, tmp_path, {}, kept, print)
        entries = [e for e in writers.read(tmp_path / 'metrics.jsonl') if e['step'] <= kept]
        writer = writers.MetricWriter(tmp_path, entries, kept, tracker)
        for step in steps:
            writer.write({'step': step, 'split': 'train', 'loss': 0.5})
        return writer

    start(0, 1, 2, 3).close()
    start(3, 4, 5)  # and is killed
    start(5, 6).close()
    assert sent == [1, 2, 3, 4, 5, 4, 5, 6]
    sent.clear()
    start(2, 3, 4)  # from an earlier checkpoint, and is killed
    start(4, 5).close()
    assert sent == [3, 4, 3, 4, 5]
    sent.clear()
    start(5, 6, package='trackio').close()  # which has nothing yet
    assert sent == [1, 2, 3, 4, 5, 6]


def test_a_damaged_name_is_one_line(tmp_path):
    (tmp_path / 'tracker.json').write_text('{}')
    with pytest.raises(UserError, match=r'tracker.json is damaged; remove it'):
        trackers.Tracker('wandb', tmp_path, {}, 0, print)


def test_a_missing_tracker_is_one_line_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, 'present', lambda package: package != 'trackio')
    with pytest.raises(UserError) as error:
        loop.train(small_config(tracker='trackio'), tmp_path / 'run')
    assert str(error.value) == (
        "config.tracker='trackio' needs trackio: pip install -e '.[trackio]'"
    )
    assert not (tmp_path / 'run').exists()
