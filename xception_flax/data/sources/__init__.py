"""Sources of images, by the name in `config.dataset.source`: random access to records."""

import contextlib
from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError, nearest
from xception_flax.data import copying
from xception_flax.data.imagenet_sets import imagenet_classes
from xception_flax.data.sources import arrays, folder, imagenet, tfds
from xception_flax.data.sources.base import Source as Source
from xception_flax.data.sources.base import check_label

SOURCES: dict[str, Callable[[ConfigDict, str], Source]] = {
    'tfds': tfds.load,
    'folder': folder.load,
    'imagenet': imagenet.load,
    'digits': arrays.load_digits,
    'fashion_mnist': arrays.load_fashion_mnist,
    'synthetic': arrays.load_synthetic,
}

# The files of a split, where a source has files.
FILES: dict[str, Callable[[ConfigDict, str], list[paths.File]]] = {
    'tfds': tfds.files,
    'folder': folder.files,
    'imagenet': imagenet.files,
    'fashion_mnist': arrays.fashion_mnist_files,
}


def num_classes(config: ConfigDict) -> int:
    """The number of classes in the config, or in its data; 1000 (ImageNet) if there is no data.

    For programs that show a network without training it.
    """
    if config.dataset.num_classes is not None:
        return config.dataset.num_classes
    if config.dataset.source == 'imagenet':
        return len(imagenet_classes())
    try:
        return _open(config, config.dataset.train_split).num_classes
    except (UserError, OSError):
        return 1000


def load(config: ConfigDict, split: str) -> Source:
    """Opens one split of the config's data set, as `load_all` does."""
    return load_all(config, (split,))[0]


def load_all(config: ConfigDict, splits: Iterable[str]) -> list[Source]:
    """Opens splits of the config's data set; `dataset.copy_to` copies the files of all of them.

    Args:
      config: the run's config.
      splits: names of splits in the source.

    Raises:
      UserError: there is no such source, data set or split, it is empty, or it cannot be copied.
    """
    name, splits = config.dataset.source, list(splits)
    if name not in SOURCES:
        raise UserError(f'config.dataset.source is {name!r}{nearest(name, SOURCES)}')
    if config.dataset.copy_to:
        config = _copied(config, splits)
    return [_open(config, split) for split in splits]


def _copied(config: ConfigDict, splits: Iterable[str]) -> ConfigDict:
    """Copies the files of the splits; gives the config that reads the copy."""
    name = config.dataset.source
    if name not in FILES:
        raise UserError(
            f'config.dataset.copy_to: {name} has no files to copy; set it to an empty text'
        )
    if not config.dataset.data_dir:
        raise UserError('config.dataset.copy_to: set config.dataset.data_dir, the folder to copy')
    source = paths.folder(config.dataset.data_dir)
    target = paths.on_disk(config.dataset.copy_to, 'config.dataset.copy_to').absolute()
    config = config.copy_and_resolve_references()
    config.dataset.data_dir = str(source)
    copying.copy(source, target, lambda: {split: FILES[name](config, split) for split in splits})
    config.dataset.data_dir = str(target)
    return config


def _open(config: ConfigDict, split: str) -> Source:
    source = SOURCES[config.dataset.source](config, split)
    if not len(source):
        raise UserError(f'split {split!r} of {config.dataset.source} is empty')
    # Check a few labels now and the rest when read; `Reader` counts unreadable files.
    for index in np.linspace(0, len(source) - 1, 8).astype(int).tolist():
        with contextlib.suppress(OSError):
            check_label(source, index, source[index])
    return source
