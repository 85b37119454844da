"""Sources that are arrays in memory: digits, Fashion-MNIST, random images."""

import gzip
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data.sources import tfds
from xception_flax.data.sources.base import Record, Source

DIGITS = pathlib.Path(__file__).parents[1] / 'digits.npz'
FASHION_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
    'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip
# Where Debian's package dataset-fashion-mnist puts the four files.
FASHION_DIR = '/usr/share/datasets/fashion-mnist'
SYNTHETIC_POOL = 64
SYNTHETIC_EXAMPLES = {'train': 1_281_167, 'validation': 50_000}  # as in ImageNet
FASHION_PREFIXES = {'train': 'train', 'test': 't10k'}


class ArraySource:
    """Images in an array of uint8, `[N, H, W]` (grey) or `[N, H, W, 3]`."""

    def __init__(self, title: str, images: np.ndarray, labels: np.ndarray, names: Sequence[str]):
        self.title, self.images, self.labels = title, images, labels
        self.class_names = names
        self.num_classes = len(names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return Record(image=self.images[index], label=int(self.labels[index]))

    def name(self, index: int) -> str:
        """Name of the data set and number of the image in the split."""
        return f'{self.title}[{index}]'


class SyntheticSource:
    """Random images, `[size, size, 3]`, with random labels.

    The images come from a small pool, so they take no time to make.
    """

    def __init__(self, split: str, size: int, num_classes: int):
        rng = np.random.default_rng(0)
        self.pool = rng.integers(0, 256, (SYNTHETIC_POOL, size, size, 3), dtype=np.uint8)
        self.num_classes = num_classes
        self.class_names = ()
        self.examples = SYNTHETIC_EXAMPLES[split]

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Record:
        # A multiplicative hash: labels look random and depend on the index alone.
        label = (index * 2_654_435_761 % 2**32) % self.num_classes
        return Record(image=self.pool[index % SYNTHETIC_POOL], label=label)

    def name(self, index: int) -> str:
        """The image's number."""
        return f'synthetic[{index}]'


def load_digits(config: ConfigDict, split: str) -> Source:
    """Opens the digits of the UCI repository: 1,797 real scans of 8x8 pixels, 10 classes.

    They are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
    C. Kaynak, 1998, CC BY 4.0), in the order of scikit-learn's `load_digits`.

    The data has no splits: a fixed permutation puts 360 images into 'test' and the other 1,437
    into 'train'.

    Raises:
      UserError: the split is neither 'train' nor 'test'.
    """
    _check_split('digits', split, ('train', 'test'))
    with np.load(DIGITS) as digits:
        images, labels = digits['images'], digits['labels']
    order = np.random.RandomState(0).permutation(len(labels))
    chosen = order[:360] if split == 'test' else order[360:]
    images = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
    return ArraySource(f'digits/{split}', images, labels[chosen].astype(int), list('0123456789'))


def load_fashion_mnist(config: ConfigDict, split: str) -> Source:
    """Opens Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, 10 classes.

    It is read from four IDX files in `config.dataset.data_dir` (by default the folder of Debian's
    package) or, if they are missing, from TFDS.

    Raises:
      UserError: the split is neither 'train' nor 'test', or the data is not found.
    """
    _check_split('fashion_mnist', split, tuple(FASHION_PREFIXES))
    folder = paths.path(config.dataset.data_dir or FASHION_DIR)
    files = [folder / name for name in _idx_names(split)]
    found = [next((p for p in (f, f.with_name(f.name + '.gz')) if p.exists()), f) for f in files]
    if all(path.exists() for path in found):
        images, labels = (read_idx(path) for path in found)
        if len(images) != len(labels):
            raise UserError(f'{found[0]} has {len(images)} images, {found[1]} {len(labels)} labels')
        return ArraySource(f'fashion_mnist/{split}', images, labels, FASHION_CLASSES)
    try:
        return tfds.open_split('fashion_mnist', '', config.dataset.data_dir, split)
    except UserError as error:
        raise UserError(
            f'no Fashion-MNIST: {folder} has no {files[0].name}[.gz] and {files[1].name}[.gz] '
            f'(Debian: apt-get install dataset-fashion-mnist), and TFDS says: {error}'
        ) from error


def fashion_mnist_files(config: ConfigDict, split: str) -> list[paths.File]:
    """The files that `load_fashion_mnist` reads.

    Raises:
      UserError: the split is neither 'train' nor 'test', or the data is not found.
    """
    _check_split('fashion_mnist', split, tuple(FASHION_PREFIXES))
    found = [
        file
        for file in paths.files(paths.path(config.dataset.data_dir), deep=False)
        if file.path.rpartition('/')[2].removesuffix('.gz') in _idx_names(split)
    ]
    return found or tfds.files_of('fashion_mnist', '', config.dataset.data_dir, split)


def _idx_names(split: str) -> list[str]:
    prefix = FASHION_PREFIXES[split]
    return [f'{prefix}-images-idx3-ubyte', f'{prefix}-labels-idx1-ubyte']


def load_synthetic(config: ConfigDict, split: str) -> Source:
    """Makes random images of the network's input size, to measure speed without data.

    Raises:
      UserError: the split is neither 'train' nor 'validation'.
    """
    _check_split('synthetic', split, tuple(SYNTHETIC_EXAMPLES))
    return SyntheticSource(split, config.image_size, config.dataset.num_classes or 1000)


def read_idx(path: paths.Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes (Yann LeCun's format), gzipped or not.

    Raises:
      UserError: the file is not an IDX file, or is damaged.
    """
    try:
        data = path.read_bytes()
        if path.suffix == '.gz':
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    if data[:3] != b'\0\0\x08' or len(data) < 4:
        raise UserError(f'{path} is no IDX file of bytes')
    header = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:header], '>u4').astype(int)
    if len(data) - header != shape.prod():
        raise UserError(
            f'{path} is damaged: {len(data) - header} bytes for a shape of {tuple(shape)}'
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _check_split(title: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise UserError(f'{title} has no split {split!r}; choose from {splits}')
