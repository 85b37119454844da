"""Prepares files, bytes or arrays for a network, as evaluation does."""

import os
from collections.abc import Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data import decoding
from xception_flax.data.images import EVALUATION_CROPS
from xception_flax.data.scaling import scale

Image = str | os.PathLike[str] | bytes | np.ndarray


def preprocess(images: Image | Iterable[Image], config: ConfigDict, crops: int = 1) -> jax.Array:
    """Prepares images for `model.apply`, as evaluation does.

    Args:
      images: one or several, each the path of a file, its bytes, or uint8 `[H, W, 3]` (or
        `[H, W]`, grey).
      config: config of the network's run, with the size, the crop and the range of values.
      crops: 1, the centre; 10, centre, corners and their horizontal flips; or 144 (`ten_crops` and
        `many_crops` of `xception_flax.data.images`).

    Returns:
      `[N * crops, S, S, 3]` float32, the crops of one image side by side.

    Raises:
      UserError: an image cannot be read.
    """
    check_crops(crops)
    cut = [read(image, name, config, crops) for image, name in named(images)]
    empty = np.zeros((0, config.image_size, config.image_size, 3), np.uint8)
    return scale(jnp.asarray(np.concatenate([empty, *cut])), config.preprocessing)


def named(images: Image | Iterable[Image]) -> list[tuple[Image, str]]:
    """Each image with its name: its path, or 'image 3', counted from 0."""
    one = isinstance(images, str | os.PathLike | bytes)
    one = one or (isinstance(images, np.ndarray) and images.ndim < 4)
    several = cast(Iterable[Image], [images] if one else images)
    return [
        (image, str(image) if isinstance(image, str | os.PathLike) else f'image {number}')
        for number, image in enumerate(several)
    ]


def read(image: Image, name: str, config: ConfigDict, crops: int) -> np.ndarray:
    """Reads one image and cuts it to the network's size.

    Returns:
      `[crops, S, S, 3]` uint8.

    Raises:
      UserError: the image cannot be read; the message has its name.
    """
    return EVALUATION_CROPS[crops](decode(image, name, config.max_megapixels), config)


def decode(image: Image, name: str, max_megapixels: float = decoding.MAX_MEGAPIXELS) -> np.ndarray:
    """The whole image, `[H, W, 3]` uint8.

    Raises:
      UserError: the image cannot be read; the message has its name.
    """
    try:
        if isinstance(image, str | os.PathLike):
            path = paths.path(image)
            with paths.errors(path):
                image = path.read_bytes()
        if isinstance(image, np.ndarray):
            _check_array(image)
        elif not isinstance(image, bytes):
            kind = type(image).__name__
            raise decoding.BadImageError(f'it is a {kind}; give a path, bytes, or uint8 [H, W, 3]')
        return decoding.decode(image, max_megapixels)
    except FileNotFoundError:
        raise UserError(f'there is no file {name}') from None
    except OSError as error:
        raise UserError(f'{name} cannot be read: {error.strerror}') from error
    except decoding.BadImageError as error:
        raise UserError(f'{name} cannot be read: {error}') from error


def check_crops(crops: int) -> None:
    """Checks the number of crops.

    Raises:
      UserError: the number is not supported.
    """
    if crops not in EVALUATION_CROPS:
        raise UserError(f'crops is {crops}; take one of {list(EVALUATION_CROPS)}')


def _check_array(image: np.ndarray) -> None:
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)
    if image.dtype != np.uint8 or not fits or not image.size:
        shape = ', '.join(map(str, image.shape))
        raise decoding.BadImageError(f'it is {image.dtype} [{shape}]; give uint8 [H, W, 3]')
