"""Encoded images from copies of ImageNet, for `experiments.benchmarks.layouts`.

  python -m experiments.benchmarks.readers NAME FOLDER INDEX

NAME is one of `CONTENDERS`; the benchmark starts this program and times it. INDEX is a folder for
indices.
"""

import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator

from experiments.benchmarks import turns

IMAGES = 1000  # that one call reads
Opened = tuple[float, Iterator[bytes]]  # seconds that an index took, and endless images


def xception_flax(folder: str, index: str) -> Opened:
    """This project's source, at random positions."""
    from xception_flax import config as configs
    from xception_flax.data import sources

    config = configs.default()
    config.dataset.source, config.dataset.data_dir = 'imagenet', folder
    config.dataset.index = f'{index}/{pathlib.Path(folder).name}'
    began = time.perf_counter()
    source = sources.load(config, 'train')
    return time.perf_counter() - began, (source[i]['image'] for i in _endless(len(source)))


def timm(folder: str, _: str) -> Opened:
    """The readers of timm for folders, and for tars of tars, at random positions."""
    from timm.data.readers import create_reader

    (below,) = pathlib.Path(folder).iterdir()  # the folder 'train', or the tar
    began = time.perf_counter()
    reader = create_reader('', str(below))
    seconds = time.perf_counter() - began

    def images() -> Iterator[bytes]:
        for number in _endless(len(reader)):
            file, _label = reader[number]
            with file:
                yield file.read()

    return seconds, images()


def tf_data(folder: str, _: str) -> Opened:
    """tf.data as for training: TFRecords in order, and a buffer that shuffles."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf

    features = {'image/encoded': tf.io.FixedLenFeature((), tf.string)}
    files = tf.data.Dataset.list_files(f'{folder}/train-*').repeat()
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=8).shuffle(1000)
    images = records.map(lambda record: tf.io.parse_single_example(record, features))
    return 0.0, (image['image/encoded'].numpy() for image in images)


def _endless(count: int) -> Iterator[int]:
    """All numbers below `count` in random order, again and again."""
    order = list(range(count))
    while True:
        random.shuffle(order)
        yield from order


CONTENDERS: dict[str, tuple[str, tuple[str, ...], tuple[str, Callable[[str, str], Opened]]]] = {
    # by name: label, packages that it needs, layout and function that opens it
    'folders': ('folders', ('grain',), ('folders', xception_flax)),
    'tars': ('tar of tars', ('grain',), ('tars', xception_flax)),
    'webdataset': ('webdataset', ('grain',), ('webdataset', xception_flax)),
    'tfrecord': ('TFRecord', ('tensorflow',), ('tfrecord', xception_flax)),
    'array_record': ('ArrayRecord', ('array-record',), ('array_record', xception_flax)),
    'timm_folders': ('timm, folders', ('timm',), ('folders', timm)),
    'timm_tars': ('timm, tar of tars', ('timm',), ('tars', timm)),
    'tf_data': ('tf.data, TFRecord', ('tensorflow',), ('tfrecord', tf_data)),
}


def main(name: str, folder: str, index: str) -> None:
    """Serves one contender."""
    seconds, images = CONTENDERS[name][2][1](folder, index)

    def read() -> None:
        for _ in range(IMAGES):
            next(images)

    turns.serve(lambda: read, lambda: {'index_seconds': seconds})


if __name__ == '__main__':
    main(*turns.arguments(__doc__))
