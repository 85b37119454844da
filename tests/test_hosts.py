"""Several processes and other numbers of devices: the same run.

In float64, as over the steps a network with batch norm and ReLU multiplies rounding, whatever has
changed the order of a sum, until nothing of it is comparable.
"""

import signal
import socket
import time

import jax
import numpy as np
import pytest
from programs import start
from test_faults import AGAIN, RUN, Watched
from test_main import records

import xception_flax

ARGS = (
    *RUN, '--config.dtype=float64', '--config.total_steps=30', '--config.eval_steps=30',
    '--config.checkpoint_steps=4', '--config.batch_size=40',
)  # fmt: skip


@pytest.fixture(scope='module')
def whole(tmp_path_factory, program):
    """Eight devices of one process, never stopped."""
    workdir = tmp_path_factory.mktemp('hosts')
    program(*ARGS, f'--workdir={workdir}', devices=8)
    return workdir


def free_port():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def run_a_little(args, devices):
    """Goes on with a run in one process for a few steps, until a signal."""
    run = Watched(*args, devices=devices)
    run.wait_for('loss', 2)
    run.process.send_signal(signal.SIGTERM)
    run.end(AGAIN)


def start_pair(workdir):
    """Two processes with four devices each."""
    port = free_port()
    return [
        Watched(
            *ARGS, f'--workdir={workdir}', f'--coordinator=localhost:{port}', '--processes=2',
            f'--process={i}', '--patience=60', devices=4,
        )
        for i in range(2)
    ]  # fmt: skip


def assert_agree(workdir, whole):
    ours, theirs = records(workdir), records(whole)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            # Relative to the rounding of float64, thirty steps of growth.
            expected = pytest.approx(b[key], rel=1e-8) if isinstance(value, float) else b[key]
            assert value == expected, (a['step'], key)
    ours, theirs = (weights(d) for d in (workdir, whole))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def weights(workdir):
    with jax.enable_x64(True):
        return jax.device_get(xception_flax.load_checkpoint(workdir)[1])


def test_other_numbers_of_devices_and_processes_go_on_with_the_same_run(whole, program, tmp_path):
    args = (*ARGS, f'--workdir={tmp_path}')
    # 8 devices, 2 x 4, 4, 2 x 4, 1, 8.
    run_a_little(args, devices=8)

    pair = start_pair(tmp_path)
    pair[0].wait_for('loss', 2)
    pair[1].process.send_signal(signal.SIGTERM)  # the other one learns of it
    output = [process.end(AGAIN) for process in pair]
    assert 'which is saved' in output[0]

    run_a_little(args, devices=4)

    pair = start_pair(tmp_path)
    pair[0].wait_for('loss', 5)
    pair[1].process.send_signal(signal.SIGKILL)
    pair[1].process.wait()
    pair[0].process.wait(120)
    # Either a sum over the devices fails, or JAX finds the other one silent and aborts.
    message = pair[0].process.stderr.read()
    assert pair[0].process.returncode in (AGAIN, -signal.SIGABRT), message
    assert 'another process has died' in message or 'another task died' in message

    run_a_little(args, devices=1)
    program(*args, devices=8)
    assert_agree(tmp_path, whole)


def test_processes_that_are_not_one_run_are_told(tmp_path, program):
    args = (*ARGS, f'--workdir={tmp_path}', '--processes=2', '--process=1', '--patience=3')
    began = time.monotonic()
    output = program(*args, '--coordinator=localhost:1', status=AGAIN)
    assert 'the processes did not meet at localhost:1 within 3 s' in output
    assert time.monotonic() - began < 60
    output = program(*args, '--coordinator=localhost', status=1)
    assert output == 'error: --coordinator=localhost is no address; give HOST:PORT of process 0\n'
    output = program(*args, status=1)
    assert output.endswith('go together: give all three\n')


def test_processes_of_other_settings_are_refused(tmp_path):
    for error in start_unlike_pair(tmp_path, ('--config.seed=0', '--config.seed=1')):
        assert 'error: process 1 was started with settings or data that differ' in error


def test_one_that_fails_alone_does_not_leave_the_other_waiting(tmp_path):
    (tmp_path / 'data').mkdir()
    folder = '--config.dataset.source=folder'
    ours, theirs = start_unlike_pair(tmp_path, ('--config.image_size=16', folder))
    assert 'error: config.dataset.data_dir is not set' in theirs
    assert 'another process has died' in ours or 'another task died' in ours


def start_unlike_pair(workdir, settings):
    """Two processes of other settings; gives what they print when they have failed."""
    port = free_port()
    common = (
        *ARGS, f'--workdir={workdir}', f'--coordinator=localhost:{port}', '--processes=2',
        '--patience=60',
    )  # fmt: skip
    pair = [
        start(*common, f'--process={i}', setting, devices=4) for i, setting in enumerate(settings)
    ]
    errors = [process.communicate(timeout=180)[1] for process in pair]
    assert all(process.returncode != 0 for process in pair)
    return errors
