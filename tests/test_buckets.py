"""Runs, weights and images in buckets: the same promises as on a disk."""

import json
import os
import random
import signal
import threading
import time

import buckets
import cv2
import fsspec
import jax
import numpy as np
import pooch
import pytest
from helpers import AGAIN, RUN, Program, entries, scalars, weights

import xception_flax
from xception_flax.base import gcs, paths
from xception_flax.base.errors import BucketError, described
from xception_flax.inference import listing
from xception_flax.runtime import checkpoints
from xception_flax.runtime import program as runtime_program
from xception_flax.runtime.writers import OF_THE_CLOCK

pytestmark = buckets.needs_server


@pytest.fixture(scope='module')
def whole(tmp_path_factory, program):
    """A run on a disk that was never stopped."""
    workdir = tmp_path_factory.mktemp('whole')
    program(*RUN, f'--workdir={workdir}')
    return workdir


@pytest.fixture(scope='module')
def finished():
    """A run in a bucket that was killed by a signal after some steps, and resumed."""
    workdir = f'{buckets.new_bucket()}/runs/first'
    run = Program(*RUN, f'--workdir={workdir}')
    run.wait_for('loss', 7)
    run.signal(signal.SIGTERM)
    assert 'the same command resumes it' in run.end(AGAIN)
    output = Program(*RUN, f'--workdir={workdir}').end()
    assert 'resuming from the checkpoint of step' in output
    assert f'in {workdir}:' in output
    return paths.folder(workdir)


@pytest.fixture
def bucket():
    return buckets.new_bucket()


@pytest.fixture
def copy(finished, bucket, tmp_path):
    """A copy of the finished run."""
    target = paths.folder(f'{bucket}/copy')
    paths.download(finished, tmp_path / 'copied')
    paths.upload(tmp_path / 'copied', target)
    return target


def assert_the_same(workdir, whole):
    assert entries(workdir) == entries(whole)
    jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(whole))


def last_line(text):
    return text.strip().splitlines()[-1]


def test_a_run_in_a_bucket_ends_with_the_bits_of_one_on_a_disk(finished, whole):
    assert_the_same(finished, whole)
    assert checkpoints.saved_steps(finished)[-1] == 30


def test_a_bucket_has_the_files_of_a_run(finished, whole, tmp_path):
    names = {p.name for p in finished.iterdir()}
    assert names == {p.name for p in whole.iterdir()} - {'.lock'}
    settings, theirs = (json.loads((d / 'config.json').read_text()) for d in (finished, whole))
    assert settings == theirs
    assert (finished / 'classes.json').read_bytes() == (whole / 'classes.json').read_bytes()
    curves = np.frombuffer((finished / 'curves.png').read_bytes(), np.uint8)
    assert cv2.imdecode(curves, cv2.IMREAD_COLOR) is not None
    paths.download(finished / 'tensorboard', tmp_path / 'events')
    found, expected = scalars(tmp_path / 'events'), scalars(whole / 'tensorboard')
    for numbers in (found, expected):
        for name, step in list(numbers):
            if name.endswith(OF_THE_CLOCK):
                del numbers[name, step]
    assert found == expected


def test_a_finished_run_in_a_bucket_is_complete(finished, program):
    before = entries(finished)
    output = program(*RUN, f'--workdir={finished}')
    assert 'this run is complete: its newest checkpoint is of step 30' in output
    assert entries(finished) == before


def test_a_run_in_a_bucket_is_evaluated(finished, program):
    output = program('-m', 'xception_flax.evaluate', f'--workdir={finished}')
    newest = [e for e in entries(finished) if 'weights' in e][-2:]
    for entry in newest:
        assert f'top-1 {entry["top1"]:.2%}' in output or f'{entry["top1"]:.4f}' in output, output


def test_the_settings_of_a_run_in_a_bucket_are_read(finished, program):
    for where in (f'--workdir={finished}', f'--config={finished}/config.json'):
        found = json.loads(program('-m', 'xception_flax.describe', where, '--json'))
        assert found['parameters'] == sum(
            x.size for x in jax.tree.leaves(weights(finished)['live']['params'])
        )
    output = program(
        '-m', 'xception_flax.describe', f'--config={finished}/no/config.json', status=1
    )
    assert f'{finished}/no/config.json is missing' in output


def test_images_in_a_bucket_are_predicted(finished, program, tmp_path):
    folder = paths.folder(f'{finished.parent}/images')
    rng = np.random.default_rng(0)
    for name in ('a.png', 'sub/b.png', 'c.txt', '.hidden/d.png'):
        image = rng.integers(0, 256, (20, 20, 3), np.uint8)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(cv2.imencode('.png', image)[1].tobytes())
        paths.upload(tmp_path / name, folder / name)
    args = ('-m', 'xception_flax.predict', '--json', '--top=10')
    where = f'--workdir={finished}'
    output = program(*args, f'{folder}', f'{folder}/a.png', where)
    theirs = program(*args, f'{tmp_path}', f'{tmp_path}/a.png', where)
    ours = [json.loads(line) for line in output.splitlines() if line.startswith('{')]
    local = [json.loads(line) for line in theirs.splitlines() if line.startswith('{')]
    assert [each['labels'] for each in ours] == [each['labels'] for each in local]
    named = [each['image'] for each in ours]
    assert named == [f'{folder}/a.png', f'{folder}/sub/b.png', f'{folder}/a.png']
    files, problems = listing.expand([f'{folder}/none.png'])
    assert (files, problems) == ([], [f'there is no file {folder}/none.png'])


def test_weights_are_converted_in_a_bucket(finished, bucket, program):
    net = xception_flax.load(finished)
    for name in ('x.safetensors', 'as_run'):
        target = f'{bucket}/weights/{name}'
        output = program('-m', 'xception_flax.convert', f'{finished}', target)
        assert f'written to {target}' in output
        again = xception_flax.load(target, model=net.model)  # narrow, which no file says
        jax.tree.map(np.testing.assert_array_equal, again.variables, net.variables)
        output = program('-m', 'xception_flax.convert', f'{finished}', target, status=1)
        assert last_line(output).startswith(f'error: {target} exists already')


def damage(address):
    """Changes a byte of the largest object below an address."""
    file = max((p for p in buckets.stored(address).rglob('*') if p.is_file()), key=os.path.getsize)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    with file.open('r+b') as opened:  # its attributes stay
        opened.write(data)


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_moved_aside(copy, whole, program):
    damage(f'{copy}/checkpoints/30')
    output = program(*RUN, f'--workdir={copy}')
    assert f'warning: checkpoint {copy}/checkpoints/30 is damaged' in output
    assert 'resuming from the checkpoint of step 25' in output
    assert (copy / 'checkpoints' / '30.damaged').is_dir()
    assert checkpoints.saved_steps(copy)[-1] == 30
    assert_the_same(copy, whole)


@pytest.mark.slow
def test_tensorflow_in_the_process_does_not_change_how_buckets_are_read(finished, program):
    text = (
        'import tensorflow, sys, xception_flax; net = xception_flax.load(sys.argv[1]); '
        'print(net.config.model, net.measured["step"])'
    )
    assert 'xception 30\n' in program('-c', text, str(finished))


def test_an_object_is_written_in_one_request(bucket, program):
    """A store that is restarted between two requests would not know the second."""
    text = (
        'import sys; from xception_flax.base import paths; '
        "paths.path(sys.argv[1]).write_text('x' * 7_000_000)"
    )
    with buckets.Proxy(lambda method, path: None) as proxy:
        program('-c', text, f'{bucket}/a.json', **proxy.environment)
    methods = [method for method, _ in proxy.requests]
    assert methods.count('POST') + methods.count('PUT') == 1
    assert paths.path(f'{bucket}/a.json').read_text() == 'x' * 7_000_000


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (
            OSError('Forbidden: https://host/quota/o\nx lacks storage.objects.get'),
            'Forbidden: x lacks storage.objects.get '
            '(the account needs the role Storage Object User on the bucket)',
        ),
        (
            OSError(f'Forbidden: https://host/{"long" * 99}\nthe quota is used up'),
            'Forbidden: the quota is used up (free some storage, or raise the quota)',
        ),
        (ValueError('PUT https://host: {"message": "Not Found"}'), 'Not Found'),
        (RuntimeError(), 'RuntimeError'),
    ],
)
def test_an_error_of_a_bucket_is_one_line(error, line):
    assert described(error) == line
    assert described(BucketError(line)) == line


def test_a_request_without_an_answer_is_repeated(bucket):
    paths.path(bucket)
    system = fsspec.filesystem('gs')
    assert system.requests_timeout.sock_read == gcs.SILENCE
    assert isinstance(system, gcs.Patient)


def test_compiled_programs_of_a_run_in_a_bucket_stay_on_the_machine():
    folder = runtime_program._compiled('gs://bucket/run')
    assert folder == pooch.os_cache('xception_flax') / '.compiled'


class TestErrors:
    def test_a_bucket_that_does_not_exist(self, bucket, program):
        output = program(*RUN, '--workdir=gs://no-such-bucket/run', status=1)
        assert last_line(output).startswith('error: gs://no-such-bucket')
        assert 'is there such a bucket?' in output
        assert 'Traceback' not in output

    @pytest.mark.parametrize(
        ('workdir', 'error'),
        [
            ('s3://bucket/run', 'checkpoints cannot be written there'),
            ('http://host/run', 'http://host/run is neither a path nor in a bucket'),
            ('gs:/bucket/run', 'gs:/bucket/run names no bucket; give an address like gs://BUCKET'),
            ('gs:///run', 'gs:///run names no bucket'),
            ('gs://', 'gs:// names no bucket'),
            ('gs://bucket/run#2', 'with # in its name, checkpoints would go to another address'),
            ('gs://bucket/run?', 'with ? in its name'),
        ],
    )
    def test_other_addresses(self, program, workdir, error):
        output = program(*RUN, f'--workdir={workdir}', status=1)
        assert error in output
        assert output.count('\n') == 1

    @pytest.mark.parametrize(
        ('right', 'refused'),
        [
            ('create', ('POST', 'PUT', 'PATCH', 'DELETE')),
            ('get', ('GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE')),
        ],
    )
    def test_no_permission(self, bucket, program, right, refused):
        def refuse(method, path):
            text = f'x does not have storage.objects.{right} access'
            return (403, text) if method in refused else None

        with buckets.Proxy(refuse) as proxy:
            output = program(*RUN, f'--workdir={bucket}/run', status=1, **proxy.environment)
        assert last_line(output).startswith(f'error: {bucket}/run')
        assert 'the account needs the role Storage Object User' in last_line(output)
        assert 'Traceback' not in output

    def test_no_credentials(self, bucket, program):
        def refuse(method, path):
            return 401, 'Anonymous caller does not have storage.objects.list access'

        with buckets.Proxy(refuse) as proxy:
            env = {**proxy.environment, 'GOOGLE_AUTH_TOKEN_FOR_TESTING': None}
            output = program(*RUN, f'--workdir={bucket}/run', status=1, **env)
        assert output.startswith(f'error: {bucket}/run: Anonymous caller does not have')
        assert 'gcloud auth application-default login' in output
        assert output.count('\n') == 1

    @pytest.mark.slow
    def test_a_store_that_cannot_be_reached(self, program):
        env = buckets.environment(port=1)
        output = program(*RUN, '--workdir=gs://bucket/run', status=1, **env)
        assert 'the bucket cannot be reached' in output.splitlines()[0]
        assert last_line(output).startswith('error: gs://bucket/run: ')
        assert output.count('\n') == 2

    @pytest.mark.slow
    def test_patience_ends_in_one_line(self, bucket, program):
        text = (
            'import sys; from xception_flax.base import gcs, paths; '
            'gcs.PATIENCE = gcs.FIRST_PATIENCE = 0; '
            "paths.write(paths.path(sys.argv[1]), 'x')"
        )
        with buckets.Proxy(lambda method, path: (429, 'the rate limit')) as proxy:
            output = program('-c', text, f'{bucket}/a', status=1, **proxy.environment)
        assert last_line(output).endswith(f'UserError: {bucket}/a: the rate limit, 429')

    @pytest.mark.slow
    def test_a_full_quota_spares_what_is_saved(self, copy, program):
        """Storage that takes small objects, but no more arrays."""
        before = {p: p.read_bytes() for p in paths.below(copy)}

        def refuse(method, path):
            full = method in ('POST', 'PUT') and '/checkpoints/' in path.replace('%2F', '/')
            return (403, 'the quota of the project has been exceeded') if full else None

        with buckets.Proxy(refuse) as proxy:
            output = program(
                *RUN, '--config.total_steps=40', f'--workdir={copy}', status=1, **proxy.environment
            )
        assert last_line(output) == (
            f'error: a checkpoint could not be written to {copy}/checkpoints '
            '(the quota of the project has been exceeded (free some storage, or raise the quota)); '
            'the newest whole one is of step 30'
        )
        assert 'Event loop is closed' not in output
        assert 'never retrieved' not in output
        for path, content in before.items():
            if 'checkpoints' in str(path):
                assert path.read_bytes() == content


def test_a_second_run_in_a_bucket_is_refused(bucket, program):
    run = Program(*RUN, '--config.total_steps=100_000', f'--workdir={bucket}/run')
    run.wait_for('compiling')
    output = program(*RUN, f'--workdir={bucket}/run', status=1)
    assert f'error: {bucket}/run is in use by another training' in last_line(output)
    run.kill()


class TestHindered:
    """Stores that are away, overloaded or slow delay a run, and change no bit of it."""

    @pytest.mark.slow
    def test_an_outage(self, whole, bucket):
        run = Program(*RUN, f'--workdir={bucket}/run')
        run.wait_for('step 6/30')
        buckets.server().stop()
        try:
            time.sleep(30)
        finally:
            buckets.server().start()
        output = run.end()
        assert 'Traceback' not in output
        assert_the_same(paths.folder(f'{bucket}/run'), whole)

    @pytest.mark.slow
    def test_a_tenth_of_the_requests_fails(self, whole, bucket, program):
        rng, lock = random.Random(0), threading.Lock()

        def fail(method, path):
            with lock:
                return (rng.choice((429, 503)), 'try again') if rng.random() < 0.1 else None

        args = (*RUN, '--config.checkpoint_steps=15', f'--workdir={bucket}/run')
        with buckets.Proxy(fail) as proxy:
            output = program(*args, **proxy.environment)
        assert 'Traceback' not in output
        assert_the_same(paths.folder(f'{bucket}/run'), whole)

    @pytest.mark.slow
    def test_slow_answers(self, whole, bucket, program):
        with buckets.Proxy(lambda method, path: None, seconds=0.3) as proxy:
            program(
                *RUN, '--config.checkpoint_steps=15', f'--workdir={bucket}/run', **proxy.environment
            )
        assert_the_same(paths.folder(f'{bucket}/run'), whole)


@pytest.mark.slow
def test_the_lease_of_a_killed_run_is_taken(whole, bucket):
    run = Program(*RUN, f'--workdir={bucket}/run')
    run.wait_for('loss', 12)
    run.kill()
    run = Program(*RUN, f'--workdir={bucket}/run')
    assert f'{bucket}/run/.lock is locked by' in run.end()
    assert_the_same(paths.folder(f'{bucket}/run'), whole)


@pytest.mark.slow
def test_a_frozen_run_ends_when_another_has_its_lease(whole, bucket, program):
    frozen = Program(*RUN, f'--workdir={bucket}/run')
    frozen.wait_for('loss', 12)
    frozen.signal(signal.SIGSTOP)
    second = Program(*RUN, f'--workdir={bucket}/run')
    second.wait_for('loss', 3)
    frozen.signal(signal.SIGCONT)
    output = frozen.end(1)
    assert f'error: {bucket}/run/.lock was removed or taken by another process' in output
    assert 'Traceback' not in output
    second.end()
    assert_the_same(paths.folder(f'{bucket}/run'), whole)
