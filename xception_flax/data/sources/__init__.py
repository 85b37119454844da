"""Where pictures come from: random access to records, by the name in `config.dataset.source`."""

import contextlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from xception_flax.data.sources import arrays, folder, tfds
from xception_flax.data.sources.base import Source as Source
from xception_flax.data.sources.base import check_label
from xception_flax.runtime.errors import UserError, nearest

SOURCES: dict[str, Callable[[ConfigDict, str], Source]] = {
    'tfds': tfds.load,
    'folder': folder.load,
    'digits': arrays.load_digits,
    'fashion_mnist': arrays.load_fashion_mnist,
    'synthetic': arrays.load_synthetic,
}


def num_classes(config: ConfigDict) -> int:
    """The config's number of classes, or its data's; 1000, ImageNet's, where the data is not there.

    For looking at a network without training it.
    """
    if config.dataset.num_classes is not None:
        return config.dataset.num_classes
    try:
        return load(config, config.dataset.train_split).num_classes
    except (UserError, OSError):
        return 1000


def load(config: ConfigDict, split: str) -> Source:
    """Opens one split of the config's data set.

    Args:
      config: the run's config.
      split: name of the split, as the source calls it.

    Raises:
      UserError: there is no such source, data set or split, or it is empty.
    """
    name = config.dataset.source
    if name not in SOURCES:
        raise UserError(f'config.dataset.source is {name!r}{nearest(name, SOURCES)}')
    source = SOURCES[name](config, split)
    if not len(source):
        raise UserError(f'split {split!r} of {name} is empty')
    # A few now; the others when they are read, and what cannot be read is for the reader to count.
    for index in np.linspace(0, len(source) - 1, 8).astype(int).tolist():
        with contextlib.suppress(OSError):
            check_label(source, index, source[index])
    return source
