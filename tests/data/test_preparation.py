"""`xception_flax.prepare`: ArrayRecord files of copies of ImageNet, Parquet files and folders."""

import json
import os
import signal
import time

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from helpers import default_config, start
from small_imagenet import CLASS, SPLITS, TRAIN, check, jpeg, kaggle, two_tars, write

from xception_flax.base.errors import UserError
from xception_flax.data import array_records, preparation, sources
from xception_flax.data.imagenet_sets import imagenet_classes

PREPARE = ('-m', 'xception_flax.prepare')


def parquet(root):
    """As the hub has imagenet-1k: row groups, names with the class, words as names of classes."""
    root.mkdir()
    features = {
        'image': {'_type': 'Image'},
        'label': {'names': list(imagenet_classes().values()), '_type': 'ClassLabel'},
    }
    image = pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])
    schema = pyarrow.schema(
        [('image', image), ('label', pyarrow.int64())],
        metadata={'huggingface': json.dumps({'info': {'features': features}})},
    )
    wnids = list(imagenet_classes())
    for split, files in SPLITS.items():
        chosen = list(files)[::-1]
        for shard in range(2):
            rows = [
                {
                    'image': {
                        'bytes': files[name],
                        'path': name.replace('.JPEG', f'_{wnids[CLASS[name]]}.JPEG'),
                    },
                    'label': CLASS[name],
                }
                for name in chosen[shard::2]
            ]
            table = pyarrow.Table.from_pylist(rows, schema)
            file = root / f'{split}-{shard:05}-of-00002.parquet'
            pyarrow.parquet.write_table(table, file, row_group_size=2)


@pytest.mark.parametrize('layout', [two_tars, kaggle, parquet], ids=lambda layout: layout.__name__)
def test_what_is_prepared_has_the_same_records(tmp_path, program, layout):
    layout(tmp_path / 'copy')
    output = program(*PREPARE, str(tmp_path / 'copy'), str(tmp_path / 'out'))
    assert f'train: {len(TRAIN)} images' in output
    for split in SPLITS:
        config = default_config(
            dataset__source='imagenet',
            dataset__data_dir=str(tmp_path / 'out'),
            dataset__index=str(tmp_path / 'index'),
        )
        check(sources.load(config, split), split)
    # TFDS reads it, too, in the order in which it was written.
    builder = tfds.builder_from_directory(tmp_path / 'out' / 'imagenet' / '1.0.0')
    decoders = {'image': tfds.decode.SkipDecoding()}
    for split, files in SPLITS.items():
        found = list(builder.as_data_source(split, decoders=decoders))
        assert {one['file_name'].decode(): one['image'] for one in found} == files
        assert all(one['label'] == CLASS[one['file_name'].decode()] for one in found)
    assert builder.info.features['label'].names == list(imagenet_classes())
    assert not list(tmp_path.rglob('*.partial'))


def test_folders_are_prepared_under_their_name(tmp_path, program):
    for split, count in (('train', 3), ('val', 2)):
        for name in ('rose', 'ä tulip'):
            files = {f'{split}/{name}/{i}.jpg': jpeg(i) for i in range(count)}
            write(tmp_path / 'My flowers', files)
    output = program(*PREPARE, str(tmp_path / 'My flowers'), str(tmp_path / 'out'))
    assert '--config.dataset.source=tfds --config.dataset.name=my_flowers' in output
    config = default_config(dataset__name='my_flowers', dataset__data_dir=str(tmp_path / 'out'))
    source = sources.load(config, 'val')
    assert list(source.class_names) == ['rose', 'ä tulip']
    assert [source[i]['label'] for i in range(4)] == [0, 0, 1, 1]
    assert source[3]['image'] == jpeg(1)


def test_other_parquet_files_keep_their_classes(tmp_path):
    parquet(tmp_path / 'pets')
    for path in (tmp_path / 'pets').glob('*'):
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
        for number, row in enumerate(rows):
            row['image']['path'] = f'{path.stem}_{number}.jpg' if number else None
            row['label'] %= 2
        features = {'label': {'names': ['cat', 'dog'], '_type': 'ClassLabel'}}
        metadata = {'huggingface': json.dumps({'info': {'features': features}})}
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows, table.schema.with_metadata(metadata)), path
        )
    config = default_config(dataset__data_dir=str(tmp_path / 'pets'))
    splits = preparation.open_splits(config)
    assert sorted(splits) == ['train', 'validation']
    train = splits['train']
    assert (list(train.class_names), train.num_classes) == (['cat', 'dog'], 2)
    reversed_names = list(TRAIN)[::-1]
    expected = reversed_names[::2] + reversed_names[1::2]
    for index in (8, 0, 4):  # in any order
        assert train[index] == {
            'image': TRAIN[expected[index]], 'label': CLASS[expected[index]] % 2,
        }  # fmt: skip
    assert preparation.title(splits, tmp_path / 'pets') == 'pets'


def many(root, count=6 * array_records.SHARD):
    """Folders of many links to one image."""
    write(root, {'image.jpg': jpeg(0)})
    for name in ('a', 'b'):
        (root / 'images' / 'train' / name).mkdir(parents=True)
        for i in range(count // 2):
            os.link(root / 'image.jpg', root / 'images' / 'train' / name / f'{i:05}.jpg')
    return root / 'images'


def test_a_killed_preparation_continues_and_writes_the_same(tmp_path, program):
    images, target = many(tmp_path / 'many'), tmp_path / 'out' / 'images' / array_records.VERSION
    process = start(*PREPARE, str(images), str(tmp_path / 'out'))
    second = target / 'images-train.array_record-00001-of-00006'
    while not second.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in target.glob('*-of-*6')}
    assert len(done) < 6  # it was killed in the middle
    program(*PREPARE, str(images), str(tmp_path / 'out'))
    program(*PREPARE, str(images), str(tmp_path / 'again'))
    files = sorted(path.name for path in target.iterdir() if not path.name.startswith('.'))
    assert len(files) == 6 + 4  # and the note, features.json, dataset_info.json, label names
    for file in files:
        other = tmp_path / 'again' / 'images' / array_records.VERSION / file
        assert (target / file).read_bytes() == other.read_bytes(), file
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_what_cannot_be_prepared_is_an_error(tmp_path, program):
    kaggle(tmp_path / 'copy')
    program(*PREPARE, str(tmp_path / 'copy'), str(tmp_path / 'out'))
    (tmp_path / 'copy/ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_2.JPEG').unlink()
    args = (*PREPARE, str(tmp_path / 'copy'), str(tmp_path / 'out'))
    assert 'holds train of other images; give another folder' in program(*args, status=1)
    (tmp_path / 'empty').mkdir()
    args = (*PREPARE, str(tmp_path / 'empty'), str(tmp_path / 'out'))
    assert 'has no folders of images, no Parquet files and no ImageNet' in program(*args, status=1)
    write(tmp_path / 'broken', {'train-00000-of-00001.parquet': b'PAR1'})
    config = default_config(dataset__data_dir=str(tmp_path / 'broken'))
    with pytest.raises(UserError, match=r'train-00000-of-00001.parquet is damaged'):
        preparation.open_splits(config)
