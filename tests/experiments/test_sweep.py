"""Sweeps of small runs, as a user starts them, and killed on the way."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import filelock
import pytest
from programs import start

from experiments import studies
from experiments.studies import local, runs, study

# LeNet-5 on the digits: it compiles quickly.
SETTINGS = (
    '--set=model=lenet5', '--set=image_size=32', '--set=total_steps=30', '--set=eval_steps=10',
    '--set=log_steps=5', '--set=batch_size=64',
)  # fmt: skip
GRID = (
    '-m', 'experiments.sweep', 'grid', '--base=configs/digits.py',
    '--vary=optimizer.momentum=0.8,0.9', *SETTINGS,
)  # fmt: skip
NAMES = [f'momentum_{m}/seed{seed}' for seed in (0, 1) for m in (0.8, 0.9)]


def wait_for(condition, process):
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def children(process):
    found = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(scope='module')
def swept(tmp_path_factory, program):
    """Two configs with two seeds, killed in the first run and stopped in the second."""
    workdir = tmp_path_factory.mktemp('sweep')
    command = (*GRID, '--seeds=0,1', f'--workdir={workdir}')
    first = start(*command)
    wait_for((workdir / NAMES[0] / 'checkpoints' / '10').exists, first)
    pids = [*children(first), first.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.communicate()

    second = start(*command)
    log = workdir / NAMES[1] / 'log.txt'
    wait_for(lambda: log.exists() and 'starting from' in log.read_text(), second)
    second.send_signal(signal.SIGTERM)
    outputs = [second.communicate(timeout=240)[0]]
    assert second.returncode == 75
    listed = program(*command, '--dry-run')
    outputs.append(program(*command))
    return workdir, command, listed, outputs


def test_it_goes_on_where_it_was_killed(swept):
    workdir, _, listed, (stopped, output) = swept
    assert f'{NAMES[0]} is done' in stopped
    assert f'stopped by SIGTERM in {NAMES[1]}; the same command goes on' in stopped
    lines = listed.splitlines()
    assert [line.partition(':')[0] for line in lines] == NAMES
    assert lines[0].endswith('done, 30 steps')
    assert lines[2].endswith('not started')
    assert NAMES[0] not in output
    assert [name for name in NAMES if f'{name} is done' in output] == NAMES[1:]
    assert output.endswith('all runs are done\n')
    for name in NAMES:
        records = (workdir / name / 'metrics.jsonl').read_text().splitlines()
        steps = [json.loads(line)['step'] for line in records if '"averaged"' in line]
        assert steps == [10, 20, 30]
    config = json.loads((workdir / NAMES[3] / 'config.json').read_text())
    assert (config['seed'], config['optimizer']['momentum'], config['model']) == (1, 0.9, 'lenet5')


def test_what_is_done_is_left_alone(swept, program):
    workdir, command, *_ = swept
    before = {p: p.read_bytes() for p in workdir.glob('*/*/*') if p.is_file()}
    assert program(*command) == 'all runs are done\n'
    assert {p: p.read_bytes() for p in workdir.glob('*/*/*') if p.is_file()} == before
    assert program(*command, '--launcher=commands') == ''


def test_the_report_has_its_numbers(swept, program, tmp_path):
    workdir, *_ = swept
    output = program('-m', 'experiments.report', str(workdir), f'--out={tmp_path}')
    assert 'report.html' in output
    text = (tmp_path / 'report.md').read_text()
    for momentum in (0.8, 0.9):
        finals = []
        for seed in (0, 1):
            lines = (workdir / f'momentum_{momentum}/seed{seed}/metrics.jsonl').read_text()
            finals.append(100 * json.loads(lines.splitlines()[-1])['top1'])
            assert f'| momentum_{momentum} | {seed} | {finals[-1]:.2f} |' in text
        mean, spread = sum(finals) / 2, abs(finals[0] - finals[1]) / 2**0.5
        found = re.search(rf'\| momentum_{momentum} \| ([\d.]+) ± ([\d.]+) \|.*\| 2 \|', text)
        assert float(found[1]) == pytest.approx(mean, abs=0.00501)  # two decimals are printed
        assert float(found[2]) == pytest.approx(spread, abs=0.00501)
    assert 'not run' in text  # the speed
    assert (tmp_path / 'report.html').stat().st_size > 10_000
    assert [p.suffix for p in sorted((tmp_path / 'figures').iterdir())] == ['.png', '.svg']


def test_a_run_that_fails_is_named_and_the_others_finish(tmp_path, program):
    output = program(
        '-m', 'experiments.sweep', 'grid', '--base=configs/digits.py', *SETTINGS,
        '--vary=dataset.eval_split=validation,test', f'--workdir={tmp_path}', status=1,
    )  # fmt: skip
    assert 'eval_split_test/seed0 is done' in output
    last = output.splitlines()[-1]
    assert 'error: 1 of 2 runs failed:' in output
    assert last.startswith('  eval_split_validation/seed0: status 1, error: ')
    assert "digits has no split 'validation'" in last
    assert last.endswith(f'({tmp_path}/eval_split_validation/seed0/log.txt)')


def test_commands_are_what_a_shell_takes(tmp_path, program):
    output = program(*GRID, f'--workdir={tmp_path}/with space', '--launcher=commands')
    lines = output.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[1])
    assert words[:4] == ['python', '-m', 'xception_flax.main', '--config=configs/digits.py']
    assert words[-1] == f'--workdir={tmp_path}/with space/momentum_0.9/seed0'
    assert '--config.optimizer.momentum=0.9' in words
    assert not (tmp_path / 'with space').exists()


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['fashion'], "there is no study 'fashion'; did you mean 'fashion_mnist'?"),
        (['grid'], 'grid takes --base=FILE and --vary'),
        (['fashion_mnist', '--vary=batch_size=1,2'], '--base and --vary are for the study grid'),
        (['fashion_mnist', '--set=xception.residul=True'], 'did you mean config.xception.residual'),
        (['fashion_mnist', '--process=1'], '--process means nothing to this program'),
        ([], 'STUDY is missing'),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, program, args, says):
    workdir = tmp_path / 'runs'
    output = program('-m', 'experiments.sweep', *args, f'--workdir={workdir}', status=1)
    assert says in output
    assert output.startswith('error: ')
    assert output.count('\n') == 1
    assert not workdir.exists()


class Scripted(runs.Run):
    """A run whose process is a line of Python."""

    script = ''

    @property
    def command(self):
        return [sys.executable, '-c', self.script]


def scripted(tmp_path, script):
    (variant,) = study.grid('configs/digits.py', {'total_steps': (3,)})
    (run,) = runs.runs(study.Study('', (variant,), studies.ACCURACY), tmp_path)
    found = Scripted(run.name, run.workdir, run.file, run.overrides)
    object.__setattr__(found, 'script', script)
    return found


def test_a_run_that_asks_for_it_is_started_again(tmp_path):
    file = tmp_path / 'starts'
    script = f'import sys; f = open({str(file)!r}, "a"); f.write("x"); sys.exit(75)'
    sweep = local.Sweep([scripted(tmp_path, script)])
    with pytest.raises(local.UserError, match='status 75, without a word'):
        sweep.go()
    assert file.read_text() == 'x' * local.STARTS  # as it got no further


def test_another_sweeps_run_is_passed_over(tmp_path):
    run = scripted(tmp_path, 'raise SystemExit("started all the same")')
    with local.hold(run) as free:
        assert free
        with local.hold(run) as again:
            assert not again
        with pytest.raises(local.stopping.Stopped, match='other processes are at work on total'):
            local.Sweep([run]).go()
    assert not run.log.exists()


def test_a_training_by_hand_is_passed_over(tmp_path):
    run = scripted(tmp_path, 'raise SystemExit("started all the same")')
    run.workdir.mkdir(parents=True)
    assert not local.in_use(run)
    with filelock.FileLock(run.workdir / '.lock'):
        assert local.in_use(run)
        with local.hold(run) as free:
            assert not free
