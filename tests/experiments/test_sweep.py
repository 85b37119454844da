"""Sweeps of small runs, started as a user does and killed on the way."""

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
from helpers import start

from experiments import studies
from experiments.studies import local, study, trials

# LeNet-5 on the digits: it compiles quickly.
SETTINGS = (
    '--set=model=lenet5', '--set=image_size=32', '--set=total_steps=30', '--set=eval_steps=10',
    '--set=log_steps=5', '--set=batch_size=64',
)  # fmt: skip
GRID = ('-m', 'experiments.sweep', 'grid', '--base=configs/digits.py', *SETTINGS)
NAMES = ['momentum_0.8/seed0', 'momentum_0.8/seed1']


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
    """A config with two seeds, killed in the first run and stopped in the second."""
    workdir = tmp_path_factory.mktemp('sweep')
    command = (*GRID, '--vary=optimizer.momentum=0.8', '--seeds=0,1', f'--workdir={workdir}')
    first = start(*command)
    wait_for((workdir / NAMES[0] / 'checkpoints' / '10').exists, first)
    pids = [*children(first), first.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.communicate()

    second = start(*command, OMPI_COMM_WORLD_SIZE='2')  # one of several sweeps, each by itself
    log = workdir / NAMES[1] / 'log.txt'
    wait_for(lambda: log.exists() and 'starting from' in log.read_text(), second)
    second.send_signal(signal.SIGTERM)
    outputs = [second.communicate(timeout=240)[0]]
    assert second.returncode == 75
    listed = program(*command, '--dry-run')
    outputs.append(program(*command))
    return workdir, command, listed, outputs


@pytest.mark.slow
def test_a_killed_sweep_resumes(swept):
    workdir, _, listed, (stopped, output) = swept
    assert f'{NAMES[0]} is done' in stopped
    assert f'stopped by SIGTERM in {NAMES[1]}; the same command resumes it' in stopped
    lines = listed.splitlines()
    assert [line.partition(':')[0] for line in lines] == NAMES
    assert lines[0].endswith('done, 30 steps')
    assert not lines[1].endswith('done, 30 steps')
    assert NAMES[0] not in output
    assert f'{NAMES[1]} is done' in output
    assert output.endswith('all runs are done\n')
    for name in NAMES:
        lines = (workdir / name / 'metrics.jsonl').read_text().splitlines()
        steps = [json.loads(line)['step'] for line in lines if '"averaged"' in line]
        assert steps == [10, 20, 30]
    config = json.loads((workdir / NAMES[1] / 'config.json').read_text())
    assert (config['seed'], config['optimizer']['momentum'], config['model']) == (1, 0.8, 'lenet5')


@pytest.mark.slow
def test_finished_runs_are_not_touched(swept, program):
    workdir, command, *_ = swept
    before = {p: p.read_bytes() for p in workdir.glob('*/*/*') if p.is_file()}
    assert program(*command) == 'all runs are done\n'
    assert {p: p.read_bytes() for p in workdir.glob('*/*/*') if p.is_file()} == before
    assert program(*command, '--launcher=commands') == ''


@pytest.mark.slow
def test_the_report_has_the_numbers_of_the_sweep(swept, program, tmp_path):
    workdir, *_ = swept
    output = program('-m', 'experiments.report', str(workdir), f'--out={tmp_path}')
    assert 'report.html' in output
    text = (tmp_path / 'report.md').read_text()
    finals = []
    for seed, name in enumerate(NAMES):
        last = (workdir / name / 'metrics.jsonl').read_text().splitlines()[-1]
        finals.append(100 * json.loads(last)['top1'])
        assert f'| momentum_0.8 | {seed} | {finals[-1]:.2f} |' in text
    mean, spread = sum(finals) / 2, abs(finals[0] - finals[1]) / 2**0.5
    found = re.search(r'\| momentum_0.8 \| ([\d.]+) ± ([\d.]+) \|.*\| 2 \|', text)
    assert float(found[1]) == pytest.approx(mean, abs=0.00501)  # two decimals are printed
    assert float(found[2]) == pytest.approx(spread, abs=0.00501)
    assert 'not run' in text  # the speed
    assert (tmp_path / 'report.html').stat().st_size > 10_000
    assert [p.suffix for p in sorted((tmp_path / 'figures').iterdir())] == ['.png', '.svg']


def test_commands_can_be_pasted_into_a_shell(tmp_path, program):
    output = program(
        *GRID, '--vary=optimizer.momentum=0.8,0.9', f'--workdir={tmp_path}/with space',
        '--launcher=commands',
    )  # fmt: skip
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
        (['fashion_mnist', '--process=1'], '--process has no effect in this program'),
        (['fashion_mnist', '--xpk=cluster=a'], '--xpk is for --launcher=xpk; give that, too'),
        (['fashion_mnist', '--slurm=timeout_min=9'], '--slurm is for --launcher=slurm'),
        (
            ['fashion_mnist', '--launcher=xpk', '--xpk=--cluster=a'],
            '--xpk=--cluster=a: leave out the dashes',
        ),
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


class Scripted(trials.Trial):
    """A run whose process is a line of Python."""

    script = ''

    @property
    def command(self):
        return [sys.executable, '-c', self.script]


def scripted(tmp_path, script, steps=3):
    (variant,) = study.grid('configs/digits.py', {'total_steps': (steps,)})
    (trial,) = trials.trials(study.Study('', (variant,), studies.ACCURACY), tmp_path)
    found = Scripted(trial.name, trial.workdir, trial.file, trial.overrides)
    object.__setattr__(found, 'script', script)
    return found


def test_a_failing_run_is_named_and_the_others_finish(tmp_path, capsys):
    failing = scripted(tmp_path, 'raise SystemExit("error: no data")')
    other = scripted(tmp_path, '', steps=4)
    assert str(failing.standing()) == 'not started'
    with pytest.raises(local.UserError) as raised:
        local.Sweep([failing, other]).go()
    reason = f'{failing.name}: status 1, error: no data ({failing.log})'
    assert str(raised.value) == f'1 of 2 runs failed:\n  {reason}'
    assert f'{other.name} is done' in capsys.readouterr().out


def test_a_run_that_ends_with_status_75_is_started_again(tmp_path):
    file = tmp_path / 'starts'
    script = f'import sys; f = open({str(file)!r}, "a"); f.write("x"); sys.exit(75)'
    sweep = local.Sweep([scripted(tmp_path, script)])
    with pytest.raises(local.UserError, match='status 75, no output'):
        sweep.go()
    assert file.read_text() == 'x' * local.STARTS  # it made no progress


def test_the_run_of_another_sweep_is_skipped(tmp_path):
    trial = scripted(tmp_path, 'raise SystemExit("started nevertheless")')
    with local.hold(trial) as free:
        assert free
        with local.hold(trial) as again:
            assert not again
        with pytest.raises(local.signals.Stopped, match='other processes are training total'):
            local.Sweep([trial]).go()
    assert not trial.log.exists()


def test_a_run_that_was_started_by_hand_is_skipped(tmp_path):
    trial = scripted(tmp_path, 'raise SystemExit("started nevertheless")')
    trial.workdir.mkdir(parents=True)
    assert not local.in_use(trial)
    with filelock.FileLock(trial.workdir / '.lock'):
        assert local.in_use(trial)
        with local.hold(trial) as free:
            assert not free
