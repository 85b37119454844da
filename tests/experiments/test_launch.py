"""Clusters: what xpk makes of a submitted run, and the files in experiments/launch/.

`.ci/run` puts xpk and kubernetes-validate on the PATH, from an environment of their own.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers import ROOT, RUN, environment

from experiments.studies import STUDIES, study, trials, xpk
from xception_flax.base.errors import UserError

LAUNCH = ROOT / 'experiments' / 'launch'
GRID = (
    '-m', 'experiments.sweep', 'grid', '--base=configs/digits.py', '--vary=batch_size=64,128',
    '--launcher=xpk',
)  # fmt: skip
CLUSTER = (
    'dry-run', 'skip-validation', 'cluster=mine', 'project=mine', 'zone=us-west4-a',
    'docker-image=gcr.io/mine/xception',
)  # fmt: skip
QUIET = {'TELEMETRY_ENABLED': 'false'}  # xpk reports its use to Google otherwise
TPU = ('tpu-type=v5litepod-16', 'num-slices=2')
GPU = ('device-type=h100-mega-80gb-8', 'num-nodes=2')


def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f'{program} is not on the PATH')


def pod(manifest):
    """The containers of a JobSet's pods."""
    (job,) = manifest['spec']['replicatedJobs']
    return job['template']['spec']['template']['spec']['containers']


def after(manifest, status):
    """What a JobSet does when a container ends with a status: 'fail' or 'restart'."""
    (job,) = manifest['spec']['replicatedJobs']
    job, policy = job['template']['spec'], manifest['spec']['failurePolicy']
    assert job['backoffLimit'] == 0
    reason = 'BackoffLimitExceeded'
    for rule in job['podFailurePolicy']['rules']:
        codes = rule['onExitCodes']
        assert rule['action'] == 'FailJob'
        assert codes['containerName'] in [container['name'] for container in pod(manifest)]
        if (status in codes['values']) == (codes['operator'] == 'In'):
            reason = 'PodFailurePolicy'
    for rule in policy['rules']:
        if reason in rule['onJobFailureReasons']:
            assert rule['action'] == 'FailJobSet'
            return 'fail'
    return 'restart' if policy['maxRestarts'] > 0 else 'fail'


def assert_resumes(manifest):
    """Status 1 is for somebody to fix; 75, an abort by JAX and a killed pod are not."""
    assert [after(manifest, status) for status in (1, 75, 134, 137)] == ['fail'] + 3 * ['restart']


def test_kubernetes_accepts_the_names(tmp_path):
    axes = {'schedule.learning_rate': (0.045, 0.18), 'xception.residual': (True, False)}
    grid = study.Study('', study.grid('configs/digits.py', axes, seeds=(0, 1)), ())
    for one in (*STUDIES.values(), grid):
        found = [xpk.name(trial) for trial in trials.trials(one, tmp_path)]
        assert len(set(found)) == len(found)
        for name in found:
            assert re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', name)
            assert len(name) <= 28
    here, there = (trials.trials(STUDIES['imagenet'], tmp_path / name)[0] for name in 'ab')
    assert xpk.name(here).startswith('xception-seed0-')
    assert xpk.name(here) != xpk.name(there)


def test_a_missing_xpk_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='needs xpk on the PATH'):
        next(xpk.submit(trials.trials(STUDIES['imagenet'], tmp_path), ()))


def test_a_refused_run_does_not_keep_the_others(tmp_path, program):
    """A stand-in for xpk refuses the first workload."""
    stand_in, flag = tmp_path / 'bin' / 'xpk', tmp_path / 'refused'
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\n[ -e {flag} ] || {{ touch {flag}; exit 1; }}\n')
    stand_in.chmod(0o755)
    path = f'{stand_in.parent}:{os.environ["PATH"]}'
    output = program(*GRID, f'--workdir={tmp_path}', '--xpk=cluster=mine', status=1, PATH=path)
    submitted, error = output.splitlines()
    assert submitted.startswith('batch_size_128/seed0: workload batch-size-128-seed0-')
    assert error == 'error: xpk did not submit batch_size_64/seed0; it says why above'


@needs('xpk')
@pytest.mark.slow
@pytest.mark.parametrize('machines', [TPU, GPU], ids=['tpu', 'gpu'])
def test_a_workload_of_xpk_restarts_after_saving(tmp_path, program, machines):
    file = tmp_path / 'manifest.yaml'
    arguments = (*CLUSTER, *machines, f'output-manifest-file={file}')
    whole = [f'--xpk={argument}' for argument in arguments]
    program(*GRID, '--seeds=3', f'--workdir={tmp_path}', *whole, HOME=str(tmp_path), **QUIET)
    manifest = yaml.safe_load(file.read_text())  # of the last run
    assert re.fullmatch('batch-size-128-seed3-[0-9a-f]{6}', manifest['metadata']['name'])
    assert_resumes(manifest)
    started = 'exec python -m xception_flax.main --config=configs/digits.py --config.batch_size=128'
    scripts = [container['command'][-1] for container in pod(manifest) if 'command' in container]
    assert sum(started in script for script in scripts) == 1


@needs('xpk')
@pytest.mark.slow
def test_xpk_itself_would_let_a_saved_run_fail(tmp_path):
    file = tmp_path / 'manifest.yaml'
    arguments = (*CLUSTER, *TPU, f'output-manifest-file={file}', 'max-restarts=9', 'workload=a')
    command = ['xpk', 'workload', 'create', '--command=true', *(f'--{a}' for a in arguments)]
    env = environment(HOME=str(tmp_path), **QUIET)
    subprocess.run(command, env=env, check=True, capture_output=True)
    assert after(yaml.safe_load(file.read_text()), 75) == 'fail'


@needs('xpk')
@pytest.mark.slow
def test_the_signal_of_a_preemption_reaches_the_run_through_the_shell_of_xpk(tmp_path):
    file, env = tmp_path / 'manifest.yaml', environment(HOME=str(tmp_path), **QUIET)
    settings = dict(argument.removeprefix('--config.').split('=') for argument in RUN[3:])
    settings |= {'total_steps': '100000', 'eval_steps': '100000'}  # it never ends by itself
    trial = trials.Trial('digits/seed0', tmp_path / 'run', 'configs/digits.py', settings)
    command = xpk.command(trial, (*CLUSTER, *TPU, f'output-manifest-file={file}'))
    subprocess.run(command, env=env, check=True, capture_output=True)
    (container,) = pod(yaml.safe_load(file.read_text()))
    env['PATH'] = f'{os.path.dirname(sys.executable)}:{env["PATH"]}'
    log = tmp_path / 'log'
    with log.open('w') as out:
        shell = subprocess.Popen(container['command'], cwd=ROOT, env=env, stdout=out, stderr=out)
    while 'loss' not in log.read_text():
        assert shell.poll() is None, log.read_text()
        time.sleep(0.05)
    shell.send_signal(signal.SIGTERM)
    assert shell.wait(60) == 75, log.read_text()
    assert 'which is saved' in log.read_text()


def test_the_jobset_restarts_after_anything_but_an_error():
    manifest = list(yaml.safe_load_all((LAUNCH / 'jobset.yaml').read_text()))[-1]
    assert_resumes(manifest)
    (job,) = manifest['spec']['replicatedJobs']
    spec = job['template']['spec']
    assert job['replicas'] == 1  # JAX finds the pods of one Job
    assert spec['completionMode'] == 'Indexed'
    assert spec['completions'] == spec['parallelism']


@needs('kubernetes-validate')
def test_kubernetes_accepts_the_parts_of_the_jobset(tmp_path):
    """All but the JobSet itself, of which no package has the schema."""
    *others, manifest = yaml.safe_load_all((LAUNCH / 'jobset.yaml').read_text())
    (job,) = manifest['spec']['replicatedJobs']
    whole = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'a'}, **job['template']}
    file = tmp_path / 'parts.yaml'
    file.write_text(yaml.safe_dump_all((*others, whole)))
    subprocess.run(['kubernetes-validate', '--strict', file], check=True)


def test_skypilot_gives_each_process_the_address_of_the_first():
    task = yaml.safe_load((LAUNCH / 'skypilot.yaml').read_text())
    assert task['resources']['job_recovery']['recover_on_exit_codes'] == [75, 134]
    script = task['run'].replace('cd /xception_flax', '')
    script = script.replace('exec /usr/local/bin/python', 'echo')
    variables = {
        'SKYPILOT_NODE_IPS': '10.0.0.7\n10.0.0.8', 'SKYPILOT_NUM_NODES': '2',
        'SKYPILOT_NODE_RANK': '1',
    }  # fmt: skip
    printed = subprocess.check_output(['bash', '-c', script], env=variables, text=True)
    assert printed.endswith(' --coordinator=10.0.0.7:8476 --processes=2 --process=1\n')


def test_the_image_holds_what_programs_need_in_any_folder(tmp_path):
    """The files that the Dockerfile copies, without an installation."""
    text = (LAUNCH / 'Dockerfile').read_text()
    image, elsewhere = tmp_path / 'xception_flax', tmp_path / 'elsewhere'
    image.mkdir()
    elsewhere.mkdir()
    for line in re.findall('^COPY (.+) .+$', text, re.M):
        for name in line.split():
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, image / name)
    assert f'WORKDIR /{image.name}\n' in text
    assert f'ENV PYTHONPATH=/{image.name}\n' in text
    config = f'--config={image}/configs/imagenet_elu.py'  # changes another config
    for command in (
        ('-m', 'xception_flax.describe', config),
        ('-m', 'experiments.sweep', 'fashion_mnist', f'--workdir={tmp_path}', '--dry-run'),
        ('-c', 'import experiments, xception_flax; print(experiments, xception_flax)'),
    ):
        ran = subprocess.run(
            [sys.executable, *command], cwd=elsewhere, capture_output=True, text=True,
            env=environment(PYTHONPATH=str(image)),
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(str(image)) == 2
