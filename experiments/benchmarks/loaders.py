"""Training batches of JPEG files by several libraries, for `experiments.benchmarks.input`.

  python -m experiments.benchmarks.loaders NAME FOLDER BATCH

NAME is one of `CONTENDERS`; the benchmark starts this program and times it.
"""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.benchmarks import turns

SIZE = 299
AREA, ASPECT = (0.05, 1.0), (3 / 4, 4 / 3)  # of a crop


def xception_flax(folder: str, batch: int) -> Iterator[np.ndarray]:
    """This project, with the augmentation of the others."""
    same = {
        'protocol': 'opencv', 'augment.area': AREA, 'augment.aspect': ASPECT,
        'augment.brightness': 0.0, 'augment.saturation': 0.0,
    }  # fmt: skip
    return _ours(folder, batch, same)


def inception(folder: str, batch: int) -> Iterator[np.ndarray]:
    """This project, with the crops, resizing and colours of `configs/imagenet.py`."""
    return _ours(folder, batch, {})


def _ours(folder: str, batch: int, changes: dict[str, Any]) -> Iterator[np.ndarray]:
    from experiments.studies import settings
    from xception_flax.base import memory
    from xception_flax.data import pipeline, sources
    from xception_flax.data.reader import Reader

    memory.keep_freed()  # as the programs do
    path = pathlib.Path(folder)
    overrides = {
        'dataset.source': 'folder', 'dataset.data_dir': str(path.parent),
        'batch_size': batch, 'image_size': SIZE,
        'loader_threads': os.cpu_count(), 'loader_processes': 0,
    }  # fmt: skip
    config = settings.read('configs/imagenet.py', overrides | changes)
    reader = Reader(sources.load(config, path.name), 0.0)
    for found in pipeline.training_batches(reader, config, 0):
        yield found['image']


def tf_data(folder: str, batch: int) -> Iterator[np.ndarray]:
    """The pipeline of TensorFlow's examples, which decodes only the crop."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf

    def prepare(path: Any) -> Any:
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            aspect_ratio_range=ASPECT,
            area_range=AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE))
        image = tf.image.random_flip_left_right(image)
        return tf.cast(image, tf.uint8)

    files = tf.data.Dataset.list_files(f'{folder}/*/*.jpg').cache().repeat()
    images = files.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    yield from images.batch(batch).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def torchvision(folder: str, batch: int) -> Iterator[np.ndarray]:
    """Pillow by torchvision, in one process: no image is copied between processes."""
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, AREA, ASPECT),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder, prepare), batch, shuffle=True, drop_last=True
    )
    while True:
        for images, _ in loader:
            yield images.numpy()


CONTENDERS: dict[str, tuple[str, tuple[str, ...], Callable[[str, int], Iterator[np.ndarray]]]] = {
    # by name: label, packages that it needs, function that gives its batches
    'ours': ('xception_flax', ('grain', 'opencv-python-headless'), xception_flax),
    'inception': (
        "xception_flax, Inception's colours",
        ('grain', 'opencv-python-headless'),
        inception,
    ),
    'tf_data': ('tf.data', ('tensorflow',), tf_data),
    'torchvision': ('torchvision, Pillow (one process)', ('torchvision', 'pillow'), torchvision),
}


def make_images(folder: pathlib.Path, count: int) -> None:
    """Writes `count` JPEGs of 500x375: crops of scikit-learn's two photographs, at quality 95."""
    import cv2
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        scale = rng.uniform(0.9, 1.2)
        resized = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = (
            rng.integers(n - m + 1) for n, m in zip(resized[..., 0].shape, (375, 500), strict=True)
        )
        window = resized[top : top + 375, left : left + 500, ::-1]
        file = folder / str(i % 2) / f'{i:04}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), window, [cv2.IMWRITE_JPEG_QUALITY, 95])


if __name__ == '__main__':
    chosen, where, size = turns.arguments(__doc__)
    turns.serve(lambda: CONTENDERS[chosen][2](where, int(size)).__next__)
