"""From files, bytes or arrays to what a network takes, as evaluation does it."""

import os
import pathlib
from collections.abc import Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xception_flax.data import pictures as ops
from xception_flax.data.scaling import scale
from xception_flax.runtime.errors import UserError

Picture = str | os.PathLike[str] | bytes | np.ndarray


def preprocess(
    pictures: Picture | Iterable[Picture], config: ConfigDict, crops: int = 1
) -> jax.Array:
    """Prepares pictures for `model.apply`, as evaluation does.

    Args:
      pictures: one or several, each the path of a JPEG or PNG, its bytes, or uint8 `[H, W, 3]` (or
        `[H, W]`, grey).
      config: of the network's run; says the size, the crop and the range of values.
      crops: 1, the centre; 10, centre, corners and their mirror images; or 144 (`ten_crops` and
        `many_crops` of `xception_flax.data.pictures`).

    Returns:
      `[N * crops, S, S, 3]` float32, the crops of one picture side by side.

    Raises:
      UserError: a picture cannot be read.
    """
    check_crops(crops)
    cut = [read(picture, name, config, crops) for picture, name in named(pictures)]
    empty = np.zeros((0, config.image_size, config.image_size, 3), np.uint8)
    return scale(jnp.asarray(np.concatenate([empty, *cut])), config.preprocessing)


def named(pictures: Picture | Iterable[Picture]) -> list[tuple[Picture, str]]:
    """Each picture with what to call it: its path, or else its place, from 0."""
    one = isinstance(pictures, str | os.PathLike | bytes)
    one = one or (isinstance(pictures, np.ndarray) and pictures.ndim < 4)
    several = cast(Iterable[Picture], [pictures] if one else pictures)
    return [
        (picture, str(picture) if isinstance(picture, str | os.PathLike) else f'picture {place}')
        for place, picture in enumerate(several)
    ]


def read(picture: Picture, name: str, config: ConfigDict, crops: int) -> np.ndarray:
    """Reads one picture and cuts it to the network's size.

    Returns:
      `[crops, S, S, 3]` uint8.

    Raises:
      UserError: it cannot be read; calls it by its name.
    """
    return ops.EVALUATION_CROPS[crops](decode(picture, name), config)


def decode(picture: Picture, name: str) -> np.ndarray:
    """The whole picture, `[H, W, 3]` uint8.

    Raises:
      UserError: it cannot be read; calls it by its name.
    """
    try:
        if isinstance(picture, str | os.PathLike):
            picture = pathlib.Path(picture).expanduser().read_bytes()
        if isinstance(picture, np.ndarray):
            _check_array(picture)
        elif not isinstance(picture, bytes):
            kind = type(picture).__name__
            raise ops.BadPictureError(f'it is a {kind}; give a path, bytes, or uint8 [H, W, 3]')
        return ops.decode(picture)
    except FileNotFoundError:
        raise UserError(f'there is no file {name}') from None
    except OSError as error:
        raise UserError(f'{name} cannot be read: {error.strerror}') from error
    except ops.BadPictureError as error:
        raise UserError(f'{name} cannot be read: {error}') from error


def check_crops(crops: int) -> None:
    """Checks the number of crops.

    Raises:
      UserError: there is no such way of cropping.
    """
    if crops not in ops.EVALUATION_CROPS:
        raise UserError(f'crops is {crops}; take one of {list(ops.EVALUATION_CROPS)}')


def _check_array(picture: np.ndarray) -> None:
    fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] == 3)
    if picture.dtype != np.uint8 or not fits or not picture.size:
        shape = ', '.join(map(str, picture.shape))
        raise ops.BadPictureError(f'it is {picture.dtype} [{shape}]; give uint8 [H, W, 3]')
