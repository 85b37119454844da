"""Several processes and other numbers of devices: the same run.

In float64: over many steps, a network with batch norm and ReLU amplifies rounding differences
between orders of summation, until nothing in float32 is comparable.
"""

import importlib.util
import signal
import time

import jax
import numpy as np
import pytest
from helpers import AGAIN, RUN, Program, entries

import xception_flax
from experiments.faults.store import free_port
from xception_flax.base import processes
from xception_flax.base.errors import UserError

ARGS = (
    *RUN, '--config.dtype=float64', '--config.eval_steps=30',
    '--config.checkpoint_steps=4', '--config.batch_size=40',
)  # fmt: skip


@pytest.fixture(scope='module')
def whole(tmp_path_factory, program):
    """Four devices of one process, never stopped."""
    workdir = tmp_path_factory.mktemp('hosts')
    program(*ARGS, f'--workdir={workdir}', devices=4)
    return workdir


def run_a_little(workdir, devices):
    """Continues a run in one process for a few steps, until a signal."""
    run = Program(*ARGS, f'--workdir={workdir}', devices=devices)
    run.wait_for('loss', 2)
    run.signal(signal.SIGTERM)
    run.end(AGAIN)


def start_pair(workdir, devices):
    """Two processes with some devices each."""
    port = free_port()
    return [
        Program(
            *ARGS, f'--workdir={workdir}', f'--coordinator=localhost:{port}', '--processes=2',
            f'--process={i}', '--patience=20', devices=devices,
        )
        for i in range(2)
    ]  # fmt: skip


def stop_one_of_a_pair(workdir, devices):
    """Continues a run in two processes, until one gets a signal, which the other learns of."""
    pair = start_pair(workdir, devices)
    pair[0].wait_for('loss', 2)
    pair[1].signal(signal.SIGTERM)
    output = [run.end(AGAIN) for run in pair]
    assert 'which is saved' in output[0]


def kill_one_of_a_pair(workdir, devices):
    """Continues a run in two processes, until one dies, which the other reports."""
    pair = start_pair(workdir, devices)
    pair[0].wait_for('loss', 5)
    pair[1].kill()
    # Either a sum over the devices fails, or JAX finds the other one silent and aborts.
    status, message = pair[0].status(seconds=120), pair[0].errors
    aborted = -signal.SIGABRT if jax.__version_info__ >= (0, 8) else 1
    assert status in (AGAIN, aborted), message
    assert 'another process has died' in message or 'another task died' in message


def assert_agree(workdir, whole):
    ours, theirs = entries(workdir), entries(whole)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            # Rounding of float64, amplified over thirty steps.
            expected = pytest.approx(b[key], rel=1e-8) if isinstance(value, float) else b[key]
            assert value == expected, (a['step'], key)
    ours, theirs = (weights(d) for d in (workdir, whole))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def weights(workdir):
    jax.config.update('jax_enable_x64', True)
    try:
        return jax.device_get(xception_flax.load(workdir).variables)
    finally:
        jax.config.update('jax_enable_x64', False)


@pytest.mark.slow
def test_a_run_continues_on_other_numbers_of_devices(whole, program, tmp_path):
    run_a_little(tmp_path, devices=8)
    stop_one_of_a_pair(tmp_path, devices=4)
    run_a_little(tmp_path, devices=4)
    kill_one_of_a_pair(tmp_path, devices=4)
    run_a_little(tmp_path, devices=1)
    program(*ARGS, f'--workdir={tmp_path}', devices=8)
    assert_agree(tmp_path, whole)


def test_processes_that_do_not_meet_are_an_error(tmp_path, program):
    args = (*ARGS, f'--workdir={tmp_path}', '--processes=2', '--process=1', '--patience=3')
    began = time.monotonic()
    output = program(*args, '--coordinator=localhost:1', status=AGAIN)
    assert 'not all processes joined at localhost:1 within 3 s' in output
    assert time.monotonic() - began < 60
    output = program(*args, '--coordinator=localhost', status=1)
    assert output == 'error: --coordinator=localhost is no address; give HOST:PORT of process 0\n'
    output = program(*args, status=1)
    assert output.endswith('go together: give all three\n')


@pytest.mark.parametrize(
    ('env', 'advice'),
    [
        ({'SLURM_STEP_NUM_TASKS': '4'}, 'give --coordinator'),  # the rest of Slurm's are missing
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}, 'give --coordinator'),
        ({'PMI_SIZE': '2'}, 'give --coordinator'),
        ({'SKYPILOT_NUM_NODES': '2'}, 'give --coordinator'),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, "pip install -e '.[tpu]'"),
        ({'MEGASCALE_NUM_SLICES': '2'}, "pip install -e '.[tpu]'"),
        ({'JOB_COMPLETION_INDEX': '1'}, "pip install -e '.[k8s]'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_one_of_several_processes_does_not_train_alone(tmp_path, program, env, advice):
    output = program(*RUN, f'--workdir={tmp_path}', status=1, **env)
    (name, value), *_ = env.items()
    assert output.startswith(f'error: {name}={value} says that this is one of several processes')
    assert advice in output
    assert output.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_a_pod_that_cannot_look_up_the_others_does_not_train_alone(tmp_path, program):
    pod = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}
    output = program(*RUN, f'--workdir={tmp_path}', status=1, **pod)  # JAX may warn, too
    missing = importlib.util.find_spec('kubernetes') is None
    says = 'JOB_COMPLETION_INDEX=1 says' if missing else 'JAX could not find the other processes'
    assert output.splitlines()[-1].startswith(f'error: {says}')


# A shell in a job of eight tasks, `srun -n 1`, `mpirun -n 1`, a JobSet of one pod, one TPU host.
ALONE = {
    'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '1',
    'OMPI_COMM_WORLD_SIZE': '1', 'PMI_SIZE': '1', 'SKYPILOT_NUM_NODES': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': '1', 'JOB_COMPLETION_INDEX': '0',
}  # fmt: skip


def test_a_process_that_is_alone_may_be(tmp_path, program):
    nothing = f'error: {tmp_path}/config.json is missing: {tmp_path} holds no run\n'
    evaluate = ('-m', 'xception_flax.evaluate', f'--workdir={tmp_path}')
    # JAX 0.7 takes a shell in a job for a task of it.
    left_out = ['SLURM_JOB_ID'] if jax.__version_info__ < (0, 8) else []
    alone = {name: value for name, value in ALONE.items() if name not in left_out}
    assert program(*evaluate, status=1, **alone) == nothing
    assert program(*evaluate, '--processes=1', status=1, OMPI_COMM_WORLD_SIZE='2') == nothing


@pytest.mark.parametrize('launcher', ['slurm', 'openmpi'])
def test_processes_find_each_other_by_the_variables_of_their_launcher(tmp_path, launcher):
    number = 4096 * 1000 + free_port()  # JAX makes a port of it

    def variables(index):
        if launcher == 'slurm':
            return {
                'SLURM_JOB_ID': str(number), 'SLURM_STEP_NODELIST': 'localhost',
                'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_PROCID': str(index),
                'SLURM_LOCALID': str(index), 'SLURM_STEP_NUM_NODES': '1',
            }  # fmt: skip
        return {
            'OMPI_MCA_orte_hnp_uri': f'{number * 4096}.0;tcp://127.0.0.1:1',
            'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': str(index),
            'OMPI_COMM_WORLD_LOCAL_RANK': str(index),
        }  # fmt: skip

    pair = [
        Program(
            *RUN, f'--workdir={tmp_path}', f'--config.seed={i}', '--patience=20', **variables(i)
        )
        for i in range(2)
    ]
    for run in pair:
        run.end(1)
        assert 'process 1 was started with settings or data that differ' in run.errors


@pytest.mark.parametrize(
    'error', [RuntimeError('Kubernetes API Error: 403\nno permission'), KeyError('job-name')]
)
def test_a_failed_search_for_processes_is_reported_in_one_line(monkeypatch, error):
    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(UserError, match='JAX could not find the other processes') as raised:
        processes.join(None, None, None, seconds=9)
    assert '--processes=1 if there are none' in str(raised.value)
    assert '\n' not in str(raised.value)


def test_processes_of_other_settings_are_refused(tmp_path):
    for error in start_unlike_pair(tmp_path, ('--config.seed=0', '--config.seed=1')):
        assert 'error: process 1 was started with settings or data that differ' in error


@pytest.mark.slow
def test_one_that_fails_alone_does_not_leave_the_other_waiting(tmp_path):
    (tmp_path / 'data').mkdir()
    folder = '--config.dataset.source=folder'
    ours, theirs = start_unlike_pair(tmp_path, ('--config.image_size=16', folder))
    assert 'error: config.dataset.data_dir is not set' in theirs
    assert 'another process has died' in ours or 'another task died' in ours


def start_unlike_pair(workdir, settings):
    """Two processes with different settings; returns their errors when both have failed."""
    port = free_port()
    common = (
        *ARGS, f'--workdir={workdir}', f'--coordinator=localhost:{port}', '--processes=2',
        '--patience=20',
    )  # fmt: skip
    pair = [
        Program(*common, f'--process={i}', setting, devices=2) for i, setting in enumerate(settings)
    ]
    assert all(run.status(seconds=180) != 0 for run in pair)
    return [run.errors for run in pair]
