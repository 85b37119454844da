"""A small ImageNet as it lies on people's disks; every copy gives the same records."""

import os
import pickle
import subprocess
import sys

import pytest
from helpers import default_config
from small_imagenet import (
    CLASS,
    LAYOUTS,
    SPLITS,
    VAL,
    check,
    flat_with_devkit,
    jpeg,
    kaggle,
    of_class,
    slim,
    tar_of,
    train_folders,
    two_tars,
    webdataset,
    write,
)  # fmt: skip

from xception_flax.base.errors import UserError
from xception_flax.data import sources


@pytest.fixture
def config(tmp_path):
    return default_config(
        dataset__source='imagenet',
        dataset__data_dir=str(tmp_path / 'copy'),
        dataset__index=str(tmp_path / 'index'),
    )


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_has_the_same_records(config, tmp_path, layout):
    layout(tmp_path / 'copy')
    for split in SPLITS:
        source = sources.load(config, split)
        check(source, split)
        check(pickle.loads(pickle.dumps(source)), split)
        check(sources.load(config, split), split)  # by the kept index


def load(config, split='train'):
    return sources.load(config, split)


def test_an_index_is_made_anew_when_its_files_have_changed(config, tmp_path, caplog):
    two_tars(tmp_path / 'copy')
    load(config)
    (index,) = (tmp_path / 'index').iterdir()
    before = index.read_bytes()
    load(config)
    assert index.read_bytes() == before
    tar = tmp_path / 'copy' / 'ILSVRC2012_img_train.tar'
    tar.write_bytes(tar_of({'n01440764.tar': tar_of(of_class('n01440764'))}))
    assert len(load(config)) == 3
    assert 'has changed' in caplog.text
    index.write_bytes(index.read_bytes()[:200])
    assert len(load(config)) == 3
    assert 'is damaged, and made again' in caplog.text


def test_an_index_that_cannot_be_kept_is_an_error(config, tmp_path):
    two_tars(tmp_path / 'copy')
    (tmp_path / 'index').write_text('')
    with pytest.raises(UserError, match=r'cannot be kept in .*give a folder as config\.dataset'):
        load(config)


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    """The header of the second file in the first inner tar has another checksum."""
    second = data.index(b'n04285008_', data.index(b'n04285008_') + 1)
    return data[:second] + b'x' + data[second + 1 :]


@pytest.mark.parametrize(
    ('layout', 'damage'), [(two_tars, cut), (two_tars, flipped), (webdataset, cut), (slim, cut)]
)
def test_a_damaged_file_is_an_error_that_names_it(config, tmp_path, layout, damage):
    layout(tmp_path / 'copy')
    file = max(p for p in (tmp_path / 'copy').iterdir() if 'train' in p.name)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f'{file} is damaged'):
        load(config)


def test_a_missing_shard_is_an_error(config, tmp_path):
    slim(tmp_path / 'copy')
    (tmp_path / 'copy' / 'train-00001-of-00002').unlink()
    with pytest.raises(UserError, match='1 of 2 files are missing, first number 1'):
        load(config)


def test_a_file_that_shrinks_is_an_unreadable_image(config, tmp_path):
    two_tars(tmp_path / 'copy')
    source = load(config)
    os.truncate(tmp_path / 'copy' / 'ILSVRC2012_img_train.tar', 1000)
    with pytest.raises(OSError, match='has become shorter'):
        source[0]


def test_hidden_and_repeated_files_are_left_out_and_counted(config, tmp_path, caplog):
    two_tars(tmp_path / 'copy')
    files = VAL | {f'val/{name}': data for name, data in VAL.items()} | {'._x.JPEG': b'macOS'}
    write(tmp_path / 'copy', {'ILSVRC2012_img_val.tar': tar_of(files)})
    check(load(config, 'validation'), 'validation')
    assert f'{len(VAL) + 1} files are left out' in caplog.text


def test_other_sets_are_not_taken_for_imagenet(config, tmp_path):
    write(tmp_path / 'copy' / 'train', {'rose/1.jpg': jpeg(1), 'n00000001/1.jpg': jpeg(2)})
    with pytest.raises(UserError, match=r'n00000001; for other sets give .*source=folder'):
        load(config)


def test_a_class_that_contradicts_the_name_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASS, 'n01440764_7.JPEG', 5)
    webdataset(tmp_path / 'copy')
    with pytest.raises(UserError, match=r'1 images .*n01440764_7.JPEG: 5, not 0'):
        load(config)


def test_a_copy_without_a_split_says_what_was_looked_for(config, tmp_path):
    train_folders(tmp_path / 'copy')
    with pytest.raises(UserError, match='no validation images of ImageNet: neither ILSVRC2012_img'):
        load(config, 'validation')
    with pytest.raises(UserError, match=r"no split 'test'.*\['train', 'validation'\]"):
        load(config, 'test')
    write(tmp_path / 'copy', {'validation-00000-of-00001.parquet': b''})
    with pytest.raises(UserError, match=r'Parquet files, .*xception_flax\.prepare'):
        load(config, 'validation')


def test_kaggles_table_and_the_devkit_agree_with_tfds(config, tmp_path, monkeypatch):
    # Each comes before the list of TFDS, which `two_tars` is read with.
    for layout in (kaggle, flat_with_devkit):
        monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
        layout(tmp_path / layout.__name__)
        config.dataset.data_dir = str(tmp_path / layout.__name__)
        check(load(config, 'validation'), 'validation')
    two_tars(tmp_path / 'tars')
    config.dataset.data_dir = str(tmp_path / 'tars')
    with pytest.raises(UserError, match='classes of the validation images are missing: put LOC_'):
        load(config, 'validation')


def test_more_shards_than_files_may_be_open(tmp_path):
    """As 1,024 shards under a limit of 1,024."""
    script = (
        'import resource, sys; from xception_flax.data.sources.imagenet import containers; '
        '_, hard = resource.getrlimit(resource.RLIMIT_NOFILE); '
        'resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); '
        'parts = containers.Parts([sys.argv[1]] * 200); '
        'print(sum(len(parts.read(i, 0, 5)) for i in range(200)))'
    )
    write(tmp_path, {'file': b'12345'})
    found = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path / 'file')],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == '1000'
