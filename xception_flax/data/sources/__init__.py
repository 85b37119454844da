"""Sources of images, by the name in `config.dataset.source`: random access to records."""

import contextlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError, nearest
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


def num_classes(config: ConfigDict) -> int:
    """The number of classes in the config, or in its data; 1000 (ImageNet) if there is no data.

    For programs that show a network without training it.
    """
    if config.dataset.num_classes is not None:
        return config.dataset.num_classes
    if config.dataset.source == 'imagenet':
        return len(imagenet_classes())
    try:
        return load(config, config.dataset.train_split).num_classes
    except (UserError, OSError):
        return 1000


def load(config: ConfigDict, split: str) -> Source:
    """Opens one split of the config's data set.

    Args:
      config: the run's config.
      split: name of the split in the source.

    Raises:
      UserError: there is no such source, data set or split, or it is empty.
    """
    name = config.dataset.source
    if name not in SOURCES:
        raise UserError(f'config.dataset.source is {name!r}{nearest(name, SOURCES)}')
    source = SOURCES[name](config, split)
    if not len(source):
        raise UserError(f'split {split!r} of {name} is empty')
    # Check a few labels now and the rest when read; `Reader` counts unreadable files.
    for index in np.linspace(0, len(source) - 1, 8).astype(int).tolist():
        with contextlib.suppress(OSError):
            check_label(source, index, source[index])
    return source
