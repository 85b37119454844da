"""What to call a network's classes."""

import functools
import pathlib
from collections.abc import Sequence

from xception_flax.runtime.errors import UserError


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """ImageNet-1k's classes in their order: WordNet's lemmas by its id, such as 'n01440764'."""
    text = pathlib.Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='utf-8')
    return dict(line.split(' ', 1) for line in text.splitlines())


def readable(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """A name for each class that a person can read.

    Args:
      names: of the classes, as the data has them; WordNet ids of ImageNet become words. Empty if
        the data has none. None if nothing is known, which makes 1000 classes those of ImageNet.
      num_classes: how many there are.

    Raises:
      UserError: there are names, but not as many as classes.
    """
    words = imagenet_classes()
    if names is None and num_classes == len(words):
        names = list(words)
    if not names:
        return [f'class {index}' for index in range(num_classes)]
    if len(names) != num_classes:
        raise UserError(f'there are {len(names)} names for {num_classes} classes')
    return [words.get(name, name) for name in names]
