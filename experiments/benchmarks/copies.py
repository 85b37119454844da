"""The same images in several layouts of ImageNet, for `experiments.benchmarks.layouts`."""

import io
import itertools
import pathlib
import tarfile
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

DISTINCT = 64  # images
CLASSES = 100
SHARD = 1250  # images


def make(root: pathlib.Path, count: int, height: int, layouts: Iterable[str]) -> None:
    """Writes `count` images of 4:3 in `root / LAYOUT` for each layout."""
    for layout in layouts:
        (root / layout).mkdir(parents=True)
        MAKERS[layout](root / layout, count, height)


def _images(count: int, height: int) -> Iterator[tuple[str, int, bytes]]:
    """Names, classes and JPEG files, class by class: crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    from xception_flax.data.imagenet_sets import imagenet_classes

    rng = np.random.default_rng(0)
    photographs, files = load_sample_images().images, []
    width = height * 4 // 3
    for i in range(DISTINCT):
        factor = max(1.0, 1.2 * width / 640)
        large = cv2.resize(photographs[i % 2], None, fx=factor, fy=factor)
        top, left = (
            rng.integers(n - m + 1) for n, m in zip(large.shape[:2], (height, width), strict=True)
        )
        window = large[top : top + height, left : left + width, ::-1]
        files.append(cv2.imencode('.jpg', window, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    wnids = list(imagenet_classes())
    for i in range(count):
        label = i * CLASSES // count
        yield f'{wnids[label]}_{i}.JPEG', label, files[i % DISTINCT]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _folders(root: pathlib.Path, count: int, height: int) -> None:
    for name, _, data in _images(count, height):
        file = root / 'train' / name[:9] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _tars(root: pathlib.Path, count: int, height: int) -> None:
    with tarfile.open(root / 'ILSVRC2012_img_train.tar', 'w') as outer:
        for wnid, group in itertools.groupby(_images(count, height), lambda image: image[0][:9]):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode='w') as tar:
                for name, _, data in group:
                    _add(tar, name, data)
            _add(outer, f'{wnid}.tar', inner.getvalue())


def _webdataset(root: pathlib.Path, count: int, height: int) -> None:
    images = _images(count, height)
    for number in range(-(-count // SHARD)):
        with tarfile.open(root / f'imagenet1k-train-{number:04}.tar', 'w') as tar:
            for name, label, data in itertools.islice(images, SHARD):
                _add(tar, name.replace('.JPEG', '.cls'), str(label).encode())
                _add(tar, name.replace('.JPEG', '.jpg'), data)


def _tfrecord(root: pathlib.Path, count: int, height: int) -> None:
    import tensorflow as tf

    images, shards = _images(count, height), -(-count // SHARD)
    for number in range(shards):
        path = root / f'train-{number:05}-of-{shards:05}'
        with tf.io.TFRecordWriter(str(path)) as writer:
            for name, label, data in itertools.islice(images, SHARD):
                values = {
                    'image/encoded': tf.train.Feature(bytes_list={'value': [data]}),
                    'image/filename': tf.train.Feature(bytes_list={'value': [name.encode()]}),
                    'image/class/label': tf.train.Feature(int64_list={'value': [label + 1]}),
                }
                example = tf.train.Example(features=tf.train.Features(feature=values))
                writer.write(example.SerializeToString())


def _array_record(root: pathlib.Path, count: int, height: int) -> None:
    from xception_flax import config as configs
    from xception_flax.data import array_records, preparation

    folders = root / 'source'
    _folders(folders, count, height)
    config = configs.default()
    config.dataset.data_dir = str(folders)
    splits = preparation.open_splits(config)
    array_records.write(splits, root / 'imagenet' / array_records.VERSION, 'imagenet')


MAKERS = {
    'folders': _folders,
    'tars': _tars,
    'webdataset': _webdataset,
    'tfrecord': _tfrecord,
    'array_record': _array_record,
}
