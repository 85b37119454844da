"""A small ImageNet as it lies on people's disks; every copy gives the same records."""

import io
import os
import pickle
import subprocess
import sys
import tarfile

import pytest
from helpers import default_config
from small_imagenet import (
    CLASS,
    LAYOUTS,
    SPLITS,
    VAL,
    check,
    flat_with_devkit,
    flat_with_unpacked_devkit,
    folders,
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
    (index,) = (tmp_path / 'index').glob('*.npz')
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


def one_tar(tmp_path, files, name='imagenet1k-train-0000.tar'):
    write(tmp_path / 'copy', {name: tar_of(files)})


IMAGE = jpeg(0)


@pytest.mark.parametrize(
    ('files', 'names', 'left_out'),
    [
        # KEY.jpg is the image of a sample with a class, and a mask is not.
        ({'0.jpg': IMAGE, '0.seg.png': b'mask', '0.cls': b'7'}, ['0.jpg'], 1),
        ({'0.seg.png': b'mask', '0.cls': b'7'}, [], 1),
        # Without classes a dot is part of a name.
        ({f'n01440764/img.{i}.jpg': IMAGE for i in (1, 2)}, ['img.1.jpg', 'img.2.jpg'], 0),
        ({'n01440764_1.JPEG': IMAGE, 'README': b'text'}, ['n01440764_1.JPEG'], 1),
        (
            {'__MACOSX/x/n01440764_1.JPEG': b'fork', 'x/n01440764_1.JPEG': IMAGE},
            ['n01440764_1.JPEG'],
            1,
        ),
        ({'./n01440764/./n01440764_1.JPEG': IMAGE}, ['n01440764_1.JPEG'], 0),
        ({f'n01440764_{"1" * 150}.JPEG': IMAGE}, [f'n01440764_{"1" * 150}.JPEG'], 0),
        ({'0.jpg': IMAGE, '0.cls': b'7', '0.json': b'{"width": 7}'}, ['0.jpg'], 0),
    ],
)
def test_what_is_no_image_of_its_own_is_left_out(config, tmp_path, caplog, files, names, left_out):
    one_tar(tmp_path, files)
    if not names:
        with pytest.raises(UserError, match='is empty'):
            load(config)
        return
    source = load(config)
    assert [source.name(i).rpartition('/')[2] for i in range(len(source))] == names
    assert all(source[i]['image'] == IMAGE for i in range(len(source)))
    assert (f'{left_out} files are left out' in caplog.text) == bool(left_out)


def test_links_and_sparse_files_in_a_tar_are_left_out(config, tmp_path, caplog):
    (tmp_path / 'copy').mkdir()
    path, holes = tmp_path / 'copy' / 'train.tar', tmp_path / 'holes.jpg'
    holes.touch()
    os.truncate(holes, 2**20)
    subprocess.run(['tar', '-cSf', path, '-C', tmp_path, holes.name], check=True)
    with tarfile.open(path, 'a') as tar:
        for kind, name in ((tarfile.SYMTYPE, 'a'), (tarfile.LNKTYPE, 'b'), (tarfile.REGTYPE, 'c')):
            info = tarfile.TarInfo(f'n01440764/{name}.JPEG')
            info.type, info.linkname = kind, 'n01440764/c.JPEG' * (name != 'c')
            info.size = len(IMAGE) * (name == 'c')
            tar.addfile(info, io.BytesIO(IMAGE))
    source = load(config)
    assert [source[i]['image'] for i in range(len(source))] == [IMAGE]
    assert '3 files are left out' in caplog.text


def with_zeros(data):
    """A download with a hole, or one that was laid out at its full size before."""
    second = data.index(b'n02123045.tar')
    return data[:second] + bytes(len(data) - second + 2**21)


def twice(data):
    return data + data


def with_negative_size(data):
    info = tarfile.TarInfo.frombuf(data[:512], 'utf-8', 'strict')
    info.size = 1
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b'\xff' * 10 + b'\xfe\x00'
    header[148:156] = b' ' * 8
    header[148:156] = b'%06o\0 ' % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize('damage', [with_zeros, twice, with_negative_size])
def test_images_behind_the_end_of_a_tar_are_not_lost(config, tmp_path, damage):
    two_tars(tmp_path / 'copy')
    tar = tmp_path / 'copy' / 'ILSVRC2012_img_train.tar'
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(UserError, match=f'{tar} is damaged'):
        load(config)


@pytest.mark.parametrize(
    ('files', 'says'),
    [
        ({'0.jpg': IMAGE, '0.cls': b'true'}, "0.cls holds no class: b'true'"),
        ({'0.jpg': IMAGE, '0.cls': b'cat'}, '0.cls holds no class'),
        ({'0.jpg': IMAGE, '0.json': b'[' * 100_000}, '0.json holds no class'),
        ({'0.jpg': IMAGE, '0.cls': b'99999999999'}, 'has the class 99999999999'),
        ({'0.jpg': IMAGE, '0.cls': b'1000'}, 'has the label 1000, but there are 1000 classes'),
        ({'0.jpg': IMAGE, '0.cls': b'-1'}, 'no class is known for|classes .* are missing'),
    ],
)
def test_a_class_that_is_none_is_an_error(config, tmp_path, files, says):
    one_tar(tmp_path, files)
    with pytest.raises(UserError, match=says):
        load(config)


def example(path, **values):
    import tensorflow as tf

    kinds = {bytes: 'bytes_list', int: 'int64_list', float: 'float_list'}
    features = {
        name: tf.train.Feature(**{kinds[type(value[0])]: {'value': value}})
        if isinstance(value, list) and value
        else tf.train.Feature(**({'int64_list': {}} if value == [] else {}))
        for name, value in values.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        features = tf.train.Features(feature=features)
        writer.write(tf.train.Example(features=features).SerializeToString())


def test_labels_of_records_are_integers_or_none(config, tmp_path):
    path = tmp_path / 'copy' / 'imagenet2012-train.tfrecord-00000-of-00001'
    image, name = [IMAGE], [b'n01440764_1.JPEG']
    for label in ([], None):  # the name tells it
        example(path, image=image, file_name=name, label=label, z=[99])
        assert load(config)[0] == {'image': IMAGE, 'label': 0}
    for label in ([1.0], [b'7']):
        example(path, image=image, file_name=name, label=label)
        with pytest.raises(UserError, match=r'damaged: no Example .*label is no integer'):
            load(config)
    example(path, file_name=name, label=[0])
    with pytest.raises(UserError, match='an Example without an image'):
        load(config)


def test_files_beside_shards_are_no_shards(config, tmp_path):
    slim(tmp_path / 'copy')
    write(tmp_path / 'copy', {'train-00000-of-00002.idx': b'', 'train.tfrecord.incomplete': b''})
    check(load(config), 'train')


def test_the_set_is_imagenet_and_no_other_of_its_kind(config, tmp_path):
    for name in ('imagenet2012', 'imagenet2012_real', 'imagenet_lt'):
        data = IMAGE if name == 'imagenet2012' else b'other'
        file = f'{name}/1.0.0/{name}-train.tfrecord-00000-of-00001'
        example(tmp_path / 'copy' / file, image=[data], file_name=[b'n01440764_1.JPEG'], label=[0])
    assert load(config)[0]['image'] == IMAGE


@pytest.mark.parametrize(
    ('files', 'says'),
    [
        (
            ('a-train.tfrecord-00000-of-00001', 'b-train.tfrecord-00000-of-00001'),
            r'files of several data sets: a-, b- \.\.\.',
        ),
        (('train/n01440764.tar', 'train/n02123045/1.JPEG'), 'of the kind tar, .* beside n02123045'),
        (('train-0.tar.gz',), 'train-0.tar.gz is compressed, .*: unpack it'),
    ],
)
def test_unclear_copies_are_errors(config, tmp_path, files, says):
    write(tmp_path / 'copy', dict.fromkeys(files, b'data'))
    with pytest.raises(UserError, match=says):
        load(config)


def test_a_folder_without_images_does_not_hide_the_tar(config, tmp_path):
    two_tars(tmp_path / 'copy')
    write(tmp_path / 'copy', {'train/README.txt': b'see the tar', 'train/to_array_record.py': b''})
    check(load(config), 'train')


def test_links_to_folders_of_classes_are_followed(config, tmp_path, caplog):
    train_folders(tmp_path / 'elsewhere')
    (tmp_path / 'copy' / 'train').mkdir(parents=True)
    for folder in (tmp_path / 'elsewhere' / 'train').iterdir():
        (tmp_path / 'copy' / 'train' / folder.name).symlink_to(folder)
    os.mkfifo(tmp_path / 'copy' / 'train' / 'pipe.jpg')  # reading it would never end
    check(load(config), 'train')
    assert '1 files are left out' in caplog.text


def test_validation_images_in_folders_and_flat_count_once(config, tmp_path, caplog):
    flat_with_devkit(tmp_path / 'copy')
    write(tmp_path / 'copy' / 'val', {f'n01751748/{name}': VAL[name] for name in list(VAL)[:1]})
    check(load(config, 'validation'), 'validation')
    assert '1 files are left out' in caplog.text


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', bytes(100)])
def test_a_damaged_index_is_made_again(config, tmp_path, content):
    two_tars(tmp_path / 'copy')
    load(config)
    (index,) = (tmp_path / 'index').glob('*.npz')
    index.write_bytes(content)
    check(load(config), 'train')
    assert index.stat().st_size > 1000


@pytest.mark.parametrize('layout', [kaggle, flat_with_devkit], ids=lambda layout: layout.__name__)
def test_a_damaged_list_of_classes_is_an_error(config, tmp_path, monkeypatch, layout):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    layout(tmp_path / 'copy')
    name = 'LOC_val_solution.csv' if layout is kaggle else 'ILSVRC2012_devkit_t12.tar.gz'
    file = tmp_path / 'copy' / name
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(UserError, match=rf'{name} is damaged|no class is known'):
        load(config, 'validation')


def test_a_damaged_meta_mat_ends_no_process(config, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    flat_with_unpacked_devkit(tmp_path / 'copy')
    meta = tmp_path / 'copy' / 'ILSVRC2012_devkit_t12' / 'data' / 'meta.mat'
    data = meta.read_bytes()
    for place in (200, 300, 1000):
        meta.write_bytes(data[:place] + b'\xff' * 8 + data[place + 8 :])
        with pytest.raises(UserError, match='ILSVRC2012_devkit_t12 is damaged'):
            load(config, 'validation')


@pytest.mark.parametrize(
    'others',
    [
        {'ILSVRC2012_bbox_train_v2.tar.gz': b'boxes', 'ILSVRC2012_bbox_val_v3.tgz': b'boxes'},
        {'ILSVRC2012_img_train_t3.tar': b'dogs'},
        {'train/@eaDir/n01440764': b'a NAS'},
        {'imagenet2012/5.1.0.incompleteAB12/imagenet2012-train.tfrecord-00000-of-00002': b''},
        {'imagenet2012/10.0.0.old/imagenet2012-train.tfrecord-00000-of-00002': b''},
    ],
)
def test_other_files_do_not_hide_the_images(config, tmp_path, others):
    write(tmp_path / 'copy', others)
    (tmp_path / 'copy' / 'train' / 'n00000000').mkdir(parents=True)  # empty
    (tmp_path / 'copy' / 'imagenet2012').mkdir(exist_ok=True)
    slim(tmp_path / 'copy' / 'imagenet2012' / '5.1.0')
    check(load(config), 'train')


def test_a_tar_that_was_unpacked_beside_itself_is_not_read(config, tmp_path):
    folders(tmp_path / 'copy')
    write(tmp_path / 'copy' / 'val', {'ILSVRC2012_img_val.tar': tar_of(VAL)})
    check(load(config, 'validation'), 'validation')


def test_a_class_in_a_tar_may_be_a_wordnet_id(config, tmp_path):
    samples = {'0.jpg': IMAGE, '0.cls': b'n02123045\n', '0.json': b'{"label": "tiger cat"}'}
    one_tar(tmp_path, samples)
    assert load(config)[0] == {'image': IMAGE, 'label': 281}
    one_tar(tmp_path, {'0.jpg': IMAGE, '0.json': b'{"label": "n02123045"}'})
    assert load(config)[0] == {'image': IMAGE, 'label': 281}


INDEXING = """
import sys, time
from xception_flax.data.sources.imagenet import containers, index
import pathlib

def scan(path):
    open(sys.argv[1] + '/scans', 'a').write('scan\\n')
    time.sleep(1)
    yield containers.Entry('n01440764_1.JPEG', -1, 0, 5)

found = index.kept(pathlib.Path(sys.argv[1]) / 'index', [sys.argv[1] + '/file'], scan, 'train', 1)
print(len(found.names))
"""


def test_of_several_processes_one_makes_the_index(tmp_path):
    write(tmp_path, {'file': b'12345'})
    started = [
        subprocess.Popen(
            [sys.executable, '-c', INDEXING, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in started] == ['1\n'] * 3
    assert (tmp_path / 'scans').read_text() == 'scan\n'
