"""Data in buckets: read in place, or copied once to a disk of this machine (dataset.copy_to)."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
from helpers import ROOT, default_config, entries, weights, write_class_folders
from small_imagenet import (
    SPLITS,
    TRAIN,
    VAL,
    check,
    flat_with_devkit,
    folders,
    jpeg,
    kaggle,
    records,
    two_tars,
    webdataset,
    write,
)  # fmt: skip

from experiments.faults.store import WRAPPER, Server, environment
from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data import array_records, class_weights, copying, pipeline, preparation, sources
from xception_flax.data.reader import Reader
from xception_flax.data.sources import exclusion

pytest.importorskip(WRAPPER, reason='needs a server')
BUCKET = 'gs://data'


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    """Google's programs find a server on this machine."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    server = Server(tmp_path_factory.mktemp('bucket'))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server.port).items():
            patch.setenv(name, value)
        forget_clients()
        client = storage.Client(project='test', credentials=AnonymousCredentials())
        yield client.create_bucket('data')
    forget_clients()
    server.stop()


def forget_clients():
    """Clients keep the address of their server."""
    paths.path(BUCKET)
    fsspec.get_filesystem_class('gs').clear_instance_cache()
    paths._system.cache_clear()


def upload(folder):
    """Puts a folder into the bucket; returns its address."""
    address = f'{BUCKET}/{folder.name}-{time.monotonic_ns()}'
    paths.upload(folder, paths.path(address))
    return address


def put(address, data):
    paths.write(paths.path(address), data)


def config(tmp_path, data_dir, source='imagenet', **dataset):
    settings = {
        'source': source, 'data_dir': str(data_dir), 'index': str(tmp_path / 'index'),
        'copy_to': str(tmp_path / 'copy'), **dataset,
    }  # fmt: skip
    return default_config(**{f'dataset__{name}': value for name, value in settings.items()})


def copied(tmp_path):
    """The names of the files in the copy."""
    root = tmp_path / 'copy'
    found = {str(file.relative_to(root)) for file in root.rglob('*') if file.is_file()}
    return found - {'.copied', '.copied.lock'}


@pytest.fixture
def reads(monkeypatch):
    """How often each file is read."""
    found = collections.Counter()

    def read(path, *args, real=paths.read):
        found[path.rpartition('/')[2]] += 1
        return real(path, *args)

    monkeypatch.setattr(paths, 'read', read)
    return found


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, bucket):
    """A data set that `prepare` has written, in the bucket."""
    root = tmp_path_factory.mktemp('prepared')
    images = write_class_folders(root / 'in', {'train': 12, 'test': 6, 'val': 3}, classes=3)
    splits = preparation.open_splits(default_config(dataset__data_dir=str(images)))
    array_records.write(splits, root / 'sets' / 'colours' / '1.0.0', 'colours')
    put(f'{BUCKET}/other/0.1.0/other.txt', 'another data set')
    return upload(root / 'sets')


@pytest.mark.parametrize('where', ['bucket', 'disk'])
@pytest.mark.parametrize('layout', [two_tars, folders, flat_with_devkit, kaggle, webdataset])
def test_a_copy_of_imagenet_has_the_same_records(tmp_path, bucket, layout, where):
    layout(tmp_path / 'data')
    write(tmp_path / 'data', {'test/more.txt': b'', 'ILSVRC2012_img_test.tar': b'', 'a.zip': b''})
    data_dir = upload(tmp_path / 'data') if where == 'bucket' else tmp_path / 'data'
    opened = sources.load_all(config(tmp_path, data_dir), SPLITS)
    for split, source in zip(SPLITS, opened, strict=True):
        check(source, split)
    there = copied(tmp_path)
    assert not any('test' in name or name == 'a.zip' for name in there)
    labels = {flat_with_devkit: 'ILSVRC2012_devkit_t12.tar.gz', kaggle: 'LOC_val_solution.csv'}
    assert layout not in labels or labels[layout] in there
    shutil.rmtree(tmp_path / 'data')
    check(sources.load(config(tmp_path, tmp_path / 'copy', copy_to=''), 'train'), 'train')


def test_only_the_files_of_the_splits_are_copied(tmp_path, prepared):
    settings = {'source': 'tfds', 'name': 'colours'}
    (test,) = sources.load_all(config(tmp_path, prepared, **settings), ['test[:50%]'])
    shards = {name for name in copied(tmp_path) if 'array_record' in name}
    assert shards == {'colours/1.0.0/colours-test.array_record-00000-of-00001'}
    assert len(test) == 9
    sources.load(config(tmp_path, prepared, **settings), 'train+val')
    assert len([name for name in copied(tmp_path) if 'array_record' in name]) == 3
    assert not any('other' in name for name in copied(tmp_path))


def test_folders_of_classes_are_copied_by_split(tmp_path, bucket):
    root = tmp_path / 'data'
    images = {
        f'{s}/{c}/{i}.jpg': jpeg(int(i))
        for s in ('train', 'val', 'test')
        for c in 'aö'
        for i in '12'
    }
    write(root, {**images, 'train/a/notes.txt': b'left out', 'labels.csv': b''})
    address = upload(root)
    for data_dir in (address, root):
        shutil.rmtree(tmp_path / 'copy', ignore_errors=True)
        train, val = sources.load_all(config(tmp_path, data_dir, 'folder'), ['train', 'val'])
        assert records(train) == records(
            sources.load(config(tmp_path, root, 'folder', copy_to=''), 'train')
        )
        assert len(val) == 4
        assert not any(name.startswith(('test', 'labels')) for name in copied(tmp_path))
    # All splits are in one folder, and a table has the labels.
    write(root, {'table.csv': ''.join(f'{name},{name[6]}\n' for name in images).encode()})
    table = {'labels': 'table.csv', 'eval_fraction': 0.3, 'copy_to': str(tmp_path / 'whole')}
    address = upload(root)
    train = sources.load(config(tmp_path, address, 'folder', **table), 'train')
    in_place = sources.load(config(tmp_path, root, 'folder', **{**table, 'copy_to': ''}), 'train')
    assert records(train) == records(in_place)


@pytest.mark.parametrize('settings', [{}, {'eval_fraction': 0.3, 'eval_split': 'val'}])
def test_a_class_that_is_a_link_to_a_folder_is_copied(tmp_path, settings):
    top = '' if settings else 'train/'
    write(
        tmp_path, {f'{where}/{i}.jpg': jpeg(i) for where in (f'data/{top}a', 'b') for i in (1, 2)}
    )
    (tmp_path / f'data/{top}b').symlink_to(tmp_path / 'b')
    train, in_place = (
        sources.load(config(tmp_path, tmp_path / 'data', 'folder', **settings, **where), 'train')
        for where in ({}, {'copy_to': ''})
    )
    assert train.class_names == in_place.class_names == ['a', 'b']
    assert records(train) == records(in_place)


def test_an_array_record_in_a_bucket_is_read_in_place(tmp_path, prepared):
    settings = {'source': 'tfds', 'name': 'colours'}
    for split in ('train', 'val'):
        here = sources.load(config(tmp_path, prepared, **settings), split)
        there = sources.load(config(tmp_path, prepared, copy_to='', **settings), split)
        assert len(here) == len(there) > 0
        assert records(here) == records(there)
        assert here.class_names == there.class_names


def test_batches_are_the_same_in_place_and_from_a_copy(tmp_path, prepared):
    found = []
    for copy_to in ('', str(tmp_path / 'copy')):
        settings = config(tmp_path, prepared, 'tfds', name='colours', copy_to=copy_to)
        settings.update(batch_size=8, image_size=32, loader_threads=4)
        reader = Reader(sources.load(settings, 'train'), 0.0)
        batches = pipeline.training_batches(reader, settings, start=16)
        found.append([next(batches) for _ in range(3)])
        batches.close()
    for here, there in zip(*found, strict=True):
        for name in ('image', 'label'):
            np.testing.assert_array_equal(here[name], there[name])


@pytest.mark.slow
def test_training_is_the_same_in_place_and_from_a_copy(tmp_path, prepared, program):
    for name in ('place', 'copy'):
        copy_to = f'--config.dataset.copy_to={tmp_path}/copied' * (name == 'copy')
        program(
            '-m', 'xception_flax.main', '--config=configs/digits.py', '--config.total_steps=6',
            '--config.batch_size=8', '--config.xception.width=0.05', '--config.eval_steps=3',
            '--config.xception.middle_repeats=0', '--config.dataset.source=tfds',
            '--config.dataset.name=colours', f'--config.dataset.data_dir={prepared}',
            '--config.log_steps=1', f'--workdir={tmp_path}/{name}',
            *filter(None, [copy_to]),
        )  # fmt: skip
    assert entries(tmp_path / 'place') == entries(tmp_path / 'copy')
    for kind, variables in weights(tmp_path / 'place').items():
        np.testing.assert_equal(variables, weights(tmp_path / 'copy')[kind])


@pytest.fixture(params=['bucket', 'disk'])
def tars(request, tmp_path, bucket):
    """Where the two tars of ImageNet are."""
    two_tars(tmp_path / 'data')
    return upload(tmp_path / 'data') if request.param == 'bucket' else str(tmp_path / 'data')


TAR = 'ILSVRC2012_img_train.tar'


def replace(address, data):
    time.sleep(0.01)  # another time of the file
    put(address, data) if '://' in address else pathlib.Path(address).write_bytes(data)


def test_a_second_start_reads_the_copy(tmp_path, tars, reads, capsys):
    sources.load_all(config(tmp_path, tars), SPLITS)
    assert sorted(reads) == [TAR, 'ILSVRC2012_img_val.tar']
    assert 'copying 2 files' in capsys.readouterr().out
    reads.clear()
    check(sources.load_all(config(tmp_path, tars), SPLITS)[0], 'train')
    assert not reads
    assert capsys.readouterr().out == f'{tmp_path}/copy has the 2 files of {tars}\n'


def test_what_has_changed_in_the_source_is_copied_again(tmp_path, tars, reads):
    sources.load_all(config(tmp_path, tars), SPLITS)
    reads.clear()
    changed = (tmp_path / 'data' / TAR).read_bytes()[::-1]  # of the same size
    replace(f'{tars}/{TAR}', changed)
    with pytest.raises(UserError, match='damaged'):
        sources.load_all(config(tmp_path, tars), SPLITS)
    assert set(reads) == {TAR}
    assert (tmp_path / 'copy' / TAR).read_bytes() == changed


def test_what_has_changed_in_the_copy_is_copied_again(tmp_path, tars, reads):
    sources.load_all(config(tmp_path, tars), SPLITS)
    train, val = (tmp_path / 'copy' / name for name in (TAR, 'ILSVRC2012_img_val.tar'))
    good = train.read_bytes()
    train.write_bytes(b'x' * len(good))
    val.unlink()
    reads.clear()
    for split, source in zip(SPLITS, sources.load_all(config(tmp_path, tars), SPLITS), strict=True):
        check(source, split)
    assert sorted(reads) == sorted([train.name, val.name])
    assert train.read_bytes() == good


def test_what_the_source_has_no_more_is_deleted(tmp_path, bucket):
    root = tmp_path / 'data'
    write(
        root,
        {f'{s}/{c}/{i}.jpg': jpeg(int(i)) for s in ('train', 'val') for c in 'ab' for i in '12'},
    )
    for data_dir in (root, upload(root)):
        shutil.rmtree(tmp_path / 'copy', ignore_errors=True)
        settings = config(tmp_path, data_dir, 'folder')
        assert len(sources.load_all(settings, ['train', 'val'])[0]) == 4
        (paths.path(data_dir) / 'train' / 'a' / '1.jpg').unlink()
        train, val = sources.load_all(settings, ['train', 'val'])
        assert (len(train), len(val)) == (3, 4)
        assert 'train/a/1.jpg' not in copied(tmp_path)
        write(root, {'train/a/1.jpg': jpeg(1)})


def test_bytes_that_change_on_the_way_are_found(tmp_path, bucket, monkeypatch):
    two_tars(tmp_path / 'data')
    address = upload(tmp_path / 'data')

    def read(path, offset, size, real=paths.read):
        data = real(path, offset, size)
        return data[:-1] + bytes([data[-1] ^ 1])

    monkeypatch.setattr(paths, 'read', read)
    with pytest.raises(
        UserError, match=r'tar: the copy in .* has another checksum; .* start again'
    ):
        sources.load(config(tmp_path, address), 'train')
    assert copied(tmp_path) == set()


def test_a_file_that_becomes_shorter_is_an_error(tmp_path, tars, monkeypatch):
    monkeypatch.setattr(paths, 'read', lambda path, offset, size: b'short')
    with pytest.raises(UserError, match=f'{TAR} became shorter while it was copied; start again'):
        sources.load(config(tmp_path, tars), 'train')
    assert copied(tmp_path) == set()


def test_without_room_nothing_is_copied(tmp_path, tars, monkeypatch, reads):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=3000))
    with pytest.raises(UserError) as caught:
        sources.load(config(tmp_path, tars), 'train')
    size = -(-(tmp_path / 'data' / TAR).stat().st_size // 4096) * 4096
    assert str(caught.value) == (
        f'config.dataset.copy_to: {tmp_path}/copy has 3.00kB free, and the files of {tars} need '
        f'{size / 1000:.1f}kB; free some, or give a folder on another disk'
    )
    assert not reads


def test_a_disk_that_becomes_full_is_one_line(tmp_path, tars, monkeypatch):
    def full(_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(UserError, match=rf'{TAR}.partial cannot be written: .*No space left'):
            sources.load(config(tmp_path, tars), 'train')
    assert copied(tmp_path) == {f'{TAR}.partial'}
    check(sources.load(config(tmp_path, tars), 'train'), 'train')
    assert copied(tmp_path) == {TAR}


# Copies in small parts, slowly, and says how many it has read.
SCRIPT = """
import sys, time
from xception_flax.base import paths
from xception_flax.data import copying, sources
from xception_flax import config as configs

def read(*args, real=paths.read):
    print('read', flush=True)
    time.sleep({seconds})
    return real(*args)

paths.read, copying.PART, copying.THREADS = read, 2000, 2
config = configs.default()
config.dataset.update({settings})
sources.load_all(config, ['train', 'validation'])
"""


def start_copy(settings, seconds):
    script = SCRIPT.format(seconds=seconds, settings=settings.dataset.to_dict())
    return subprocess.Popen(
        [sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def notes(tmp_path):
    file = tmp_path / 'copy' / '.copied'
    lines = file.read_text().splitlines() if file.exists() else ()
    return [json.loads(line) for line in lines if line.endswith('}')]


def test_a_killed_copy_continues_where_it_was(tmp_path, tars):
    settings = config(tmp_path, tars)
    sizes = [(tmp_path / 'data' / name).stat().st_size for name in (TAR, 'ILSVRC2012_img_val.tar')]
    parts = sum(-(-size // 2000) for size in sizes)
    first = start_copy(settings, seconds=0.02)
    while len(notes(tmp_path)) < 8:
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    out, _ = first.communicate()
    noted = sum('part' in note for note in notes(tmp_path))
    assert 7 <= noted < parts / 2
    assert not {TAR, 'ILSVRC2012_img_val.tar'} <= copied(tmp_path)
    second = start_copy(settings, seconds=0)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert out.count('read') == parts - noted
    for name in (TAR, 'ILSVRC2012_img_val.tar'):
        assert (tmp_path / 'copy' / name).read_bytes() == (tmp_path / 'data' / name).read_bytes()


def test_parts_of_an_older_version_are_not_used(tmp_path, tars):
    settings = config(tmp_path, tars)
    first = start_copy(settings, seconds=0.02)
    while len(notes(tmp_path)) < 8:
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.kill()
    first.communicate()
    two_tars(tmp_path / 'other')
    changed = (tmp_path / 'other' / TAR).read_bytes()[::-1]
    replace(f'{tars}/{TAR}', changed)
    with pytest.raises(UserError, match='damaged'):
        sources.load(settings, 'train')
    assert (tmp_path / 'copy' / TAR).read_bytes() == changed


def test_of_two_processes_one_copies(tmp_path, tars):
    pair = [start_copy(config(tmp_path, tars), seconds=0.005) for _ in range(2)]
    printed = []
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        printed.append(out)
    copier, other = sorted(printed, key=lambda out: 'has the 2 files' in out)
    assert 'copying 2 files' in copier
    assert f'{tmp_path}/copy has the 2 files of {tars}' in other
    assert 'read' not in other


@pytest.mark.parametrize(
    ('dataset', 'says'),
    [
        ({'copy_to': 'gs://data/x'}, 'copy_to: gs://data/x is in a bucket; give a folder on a'),
        ({'copy_to': __file__}, rf"copy_to: .*File exists: '{__file__}'; give a new folder"),
        ({'source': 'digits'}, 'copy_to: digits has no files to copy'),
        ({'data_dir': ''}, 'copy_to: set config.dataset.data_dir'),
        ({'data_dir': 'gs://data/none'}, 'has no train images of ImageNet'),
        ({'data_dir': 'gs://data/none', 'source': 'folder'}, "none has no files of 'train'"),
        ({'data_dir': 'gs://data/none', 'source': 'tfds', 'name': 'a'}, 'no prepared data set in'),
        ({'data_dir': 'gs://data/none', 'copy_to': ''}, 'only ArrayRecord files are read in place'),
        ({'data_dir': 's3://data/none', 'copy_to': ''}, 'needs s3fs|only ArrayRecord files'),
        ({'data_dir': 'hdfs://data'}, 'neither a path nor in a bucket'),
    ],
)  # fmt: skip
def test_what_cannot_be_copied_or_read_is_one_line(tmp_path, bucket, dataset, says):
    with pytest.raises(UserError, match=says) as caught:
        sources.load(config(tmp_path, **{'data_dir': tmp_path, **dataset}), 'train')
    assert '\n' not in str(caught.value)


def test_a_folder_with_other_things_is_left_alone(tmp_path, tars):
    write(tmp_path / 'copy', {'precious.txt': b'text'})
    with pytest.raises(UserError, match=r'holds precious\.txt, which is no copy; give a new'):
        sources.load(config(tmp_path, tars), 'train')
    assert copied(tmp_path) == {'precious.txt'}
    shutil.rmtree(tmp_path / 'copy')
    sources.load(config(tmp_path, tars), 'train')
    two_tars(tmp_path / 'other')
    with pytest.raises(UserError, match=f'holds a copy of {tars}; for .*other give another'):
        sources.load(config(tmp_path, tmp_path / 'other'), 'train')
    with pytest.raises(UserError, match='lie in each other'):
        sources.load(
            config(tmp_path, tmp_path / 'other', copy_to=str(tmp_path / 'other/copy')), 'train'
        )


def test_names_that_lead_out_of_the_folder_are_refused():
    with pytest.raises(UserError, match='cannot be the name of a file'):
        copying._place('gs://data/a/../../etc/passwd', paths.path('gs://data/a'))


def test_tables_and_lists_may_lie_in_a_bucket(tmp_path, bucket):
    root = tmp_path / 'data'
    write(root, {f'{i}.jpg': jpeg(i) for i in range(4)})
    put(f'{BUCKET}/tables/train.csv', '0.jpg,a\n1.jpg,b\n2.jpg,b\n')
    put(f'{BUCKET}/tables/val.csv', '3.jpg,a\n')
    put(f'{BUCKET}/tables/weights.csv', 'a,2\nb,3\n')
    put(f'{BUCKET}/tables/excluded.txt', '1.jpg\n')
    settings = config(
        tmp_path, root, 'folder', labels=f'{BUCKET}/tables/{{split}}.csv', copy_to='',
        eval_split='val', class_weights=f'{BUCKET}/tables/weights.csv',
    )  # fmt: skip
    source = sources.load(settings, 'train')
    assert [record['label'] for record in source] == [0, 1, 1]
    assert class_weights.load(settings, source).tolist() == [2, 3]
    kept, unmatched = exclusion.exclude(source, f'{BUCKET}/tables/excluded.txt', 2)
    assert (len(kept), unmatched) == (2, [])
    settings.dataset.labels = f'{BUCKET}/tables/none.csv'
    with pytest.raises(UserError, match=f'labels: {BUCKET}/tables/none.csv cannot be read'):
        sources.load(settings, 'train')
    two_tars(tmp_path / 'tars')
    with pytest.raises(UserError, match='index: gs://data/index is in a bucket; give a folder on'):
        sources.load(
            config(tmp_path, tmp_path / 'tars', index=f'{BUCKET}/index', copy_to=''), 'train'
        )


def test_prepare_writes_to_a_disk(tmp_path, program):
    folders(tmp_path / 'data')
    output = program(
        '-m', 'xception_flax.prepare', str(tmp_path / 'data'), f'{BUCKET}/out', status=1
    )
    assert output == f'error: DIR: {BUCKET}/out is in a bucket; give a folder on a disk\n'


def test_check_reads_from_the_copy(tmp_path, tars, program):
    output = program(
        '-m', 'xception_flax.check', '--config=configs/imagenet.py',
        f'--config.dataset.data_dir={tars}', f'--config.dataset.copy_to={tmp_path}/copy',
        f'--config.dataset.index={tmp_path}/index',
    )  # fmt: skip
    assert 'copying 2 files' in output
    assert f'{len(TRAIN)} images' in output
    assert f'{len(VAL)} images' in output
