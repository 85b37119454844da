"""Readable names of classes."""

from collections.abc import Sequence

from xception_flax.base.errors import UserError
from xception_flax.data.imagenet_sets import imagenet_classes


def readable(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """A readable name for each class.

    Args:
      names: names of the classes in the data, where WordNet ids of ImageNet become words; empty if
        the data has none; None if unknown, which makes 1000 classes those of ImageNet.
      num_classes: number of classes.

    Raises:
      UserError: the number of names is not the number of classes.
    """
    words = imagenet_classes()
    if names is None and num_classes == len(words):
        names = list(words)
    if not names:
        return [f'class {index}' for index in range(num_classes)]
    if len(names) != num_classes:
        raise UserError(f'there are {len(names)} names for {num_classes} classes')
    return [words.get(name, name) for name in names]
