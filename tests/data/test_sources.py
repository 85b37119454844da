import gzip
import json

import cv2
import numpy as np
import pytest
from helpers import default_config

from xception_flax.base.errors import UserError
from xception_flax.data import decoding, sources


def config(source, **dataset):
    settings = {f'dataset__{key}': value for key, value in dataset.items()}
    if 'data_dir' in dataset:
        settings['dataset__data_dir'] = str(dataset['data_dir'])
    return default_config(dataset__source=source, image_size=71, **settings)


def write_idx(path, array):
    header = b'\0\0\x08' + bytes([array.ndim]) + np.array(array.shape, '>u4').tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count, ending in (('train', 30, '.gz'), ('t10k', 20, '')):
        write_idx(
            tmp_path / f'{prefix}-images-idx3-ubyte{ending}', rng.integers(0, 256, (count, 28, 28))
        )
        write_idx(tmp_path / f'{prefix}-labels-idx1-ubyte{ending}', np.arange(count) % 10)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    for split, count in (('train', 3), ('val', 2)):
        for label, name in enumerate(('cat', 'dog')):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.full((10, 12, 3), 100 * label + i, np.uint8)
                file = tmp_path / split / name / f'{i}.{("png", "PNG", "png")[i]}'
                file.write_bytes(cv2.imencode('.png', image)[1].tobytes())
        (tmp_path / split / 'cat' / 'notes.txt').write_text('no image')
    return tmp_path


def test_digits_are_split_once_and_for_all():
    train, test = (sources.load(config('digits'), split) for split in ('train', 'test'))
    assert (len(train), len(test)) == (1437, 360)
    assert train.num_classes == 10
    both = np.concatenate([train.images, test.images])
    assert both.dtype == np.uint8
    assert both.max() == 255
    from sklearn.datasets import load_digits

    original, order = load_digits(), np.random.RandomState(0).permutation(1797)
    for source, chosen in ((test, order[:360]), (train, order[360:])):
        np.testing.assert_array_equal(source.images, np.round(original.images[chosen] * 255 / 16))
        np.testing.assert_array_equal(source.labels, original.target[chosen])
    assert np.bincount(test.labels).tolist() == [27, 35, 36, 29, 30, 40, 44, 39, 39, 41]
    assert test[3]['label'] == test.labels[3]


def test_fashion_mnist_reads_idx_files_gzipped_or_not(fashion):
    train, test = (
        sources.load(config('fashion_mnist', data_dir=fashion), s) for s in ('train', 'test')
    )
    assert (len(train), len(test), train.num_classes) == (30, 20, 10)
    expected = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    np.testing.assert_array_equal(train[7]['image'], expected[7])
    assert train[7]['label'] == 7
    assert train.class_names[9] == 'Ankle boot'


def test_damaged_idx_files_are_named(fashion):
    path = fashion / 't10k-images-idx3-ubyte'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r't10k-images-idx3-ubyte is damaged'):
        sources.load(config('fashion_mnist', data_dir=fashion), 'test')
    path.write_bytes(b'hello')
    with pytest.raises(UserError, match='no IDX file'):
        sources.load(config('fashion_mnist', data_dir=fashion), 'test')
    path = fashion / 'train-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match='cannot be read'):
        sources.load(config('fashion_mnist', data_dir=fashion), 'train')


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match='apt-get install dataset-fashion-mnist') as caught:
        sources.load(config('fashion_mnist', data_dir=tmp_path), 'train')
    assert 'tfds build fashion_mnist' in str(caught.value)


def test_a_folder_has_classes_and_files_by_name(folder):
    source = sources.load(config('folder', data_dir=folder), 'train')
    assert (len(source), source.num_classes, source.class_names) == (6, 2, ['cat', 'dog'])
    assert [record['label'] for record in source] == [0, 0, 0, 1, 1, 1]
    assert source.name(4).endswith('train/dog/1.PNG')
    np.testing.assert_array_equal(decoding.decode(source[4]['image']), np.full((10, 12, 3), 101))


@pytest.mark.parametrize(
    ('dataset', 'split', 'says'),
    [
        ({'data_dir': ''}, 'train', 'data_dir is not set'),
        ({'data_dir': '/nowhere'}, 'train', 'there is no folder /nowhere'),
        ({}, 'validation', r"no folder 'validation' but \['train', 'val'\]"),
    ],
)
def test_a_wrong_folder_is_an_error(folder, dataset, split, says):
    with pytest.raises(UserError, match=says):
        sources.load(config('folder', **{'data_dir': folder, **dataset}), split)


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / 'train' / 'cat').mkdir(parents=True)
    with pytest.raises(UserError, match='has no images'):
        sources.load(config('folder', data_dir=tmp_path), 'train')


def test_synthetic_images_are_as_many_as_imagenets():
    train, test = (sources.load(config('synthetic'), s) for s in ('train', 'validation'))
    assert (len(train), len(test), train.num_classes) == (1_281_167, 50_000, 1000)
    assert train[5]['image'].shape == (71, 71, 3)
    np.testing.assert_array_equal(train[5]['image'], train[5]['image'])
    labels = np.array([train[i]['label'] for i in range(10_000)])
    assert len(np.unique(labels)) > 990


@pytest.mark.parametrize('source', ['digits', 'fashion_mnist', 'synthetic'])
def test_an_unknown_split_is_an_error(source):
    with pytest.raises(UserError, match="no split 'dev'"):
        sources.load(config(source), 'dev')


def test_an_unknown_source_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'folder'"):
        sources.load(config('foldr'), 'train')


class TestUnpreparedTfds:
    def load(self, tmp_path, name='mnist', version=''):
        return sources.load(config('tfds', name=name, version=version, data_dir=tmp_path), 'train')

    def prepare(self, path):
        path.mkdir(parents=True)
        info = {'name': 'mnist', 'version': '3.0.1', 'fileFormat': 'array_record'}
        (path / 'dataset_info.json').write_text(json.dumps(info))

    def test_no_name(self, tmp_path):
        with pytest.raises(UserError, match='name is not set'):
            self.load(tmp_path, name='')

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=f'tfds build mnist --data_dir={tmp_path}'):
            self.load(tmp_path)

    def test_another_version(self, tmp_path):
        self.prepare(tmp_path / 'mnist' / '3.0.1')
        with pytest.raises(UserError, match=r"no version 9.9.9 but \['3.0.1'\]"):
            self.load(tmp_path, version='9.9.9')

    def test_a_set_of_several_configs(self, tmp_path):
        self.prepare(tmp_path / 'mnist' / 'small' / '3.0.1')
        with pytest.raises(UserError, match='name one: mnist/small'):
            self.load(tmp_path)
