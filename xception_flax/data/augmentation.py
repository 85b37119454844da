"""RandAugment and random erasing, on one picture `[H, W, 3]` uint8."""

import math
from collections.abc import Callable

import cv2
import numpy as np

FILL = (128, 128, 128)  # what comes in from outside the picture


def rand_augment(
    picture: np.ndarray, count: int, magnitude: float, rng: np.random.Generator
) -> np.ndarray:
    """RandAugment (Cubuk et al. 2019): so many of `OPERATIONS`, each drawn from all of them.

    The list is the paper's. At a magnitude of 10 the ranges are AutoAugment's (Cubuk et al. 2018,
    Table 6): 30 degrees, shears of 0.3, shifts of 150 of 331 pixels, 4 bits, all solarised, colours
    0.1 and 1.9 times as strong. Where that makes sense, each second time it goes the other way. As
    in timm's "increasing" form, more magnitude is always more change.

    Args:
      picture: `[H, W, 3]` uint8.
      count: how many operations, one after the other.
      magnitude: from 0 to 10.
      rng: all that is random comes from here.
    """
    for number in rng.integers(0, len(OPERATIONS), count):
        amount = magnitude / 10 * (1 if rng.random() < 0.5 else -1)
        picture = list(OPERATIONS.values())[number](picture, amount)
    return picture


def erase(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts noise in place of a rectangle (Zhong et al. 2017).

    It covers 0.02 to 1/3 of the picture, with an aspect of 0.3 to 1/0.3, as in timm. Of ten that
    are drawn the first that fits is taken; none if none does.

    Args:
      picture: `[H, W, 3]` uint8.
      rng: all that is random comes from here.
    """
    height, width = picture.shape[:2]
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            picture = picture.copy()
            picture[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), np.uint8)
            break
    return picture


def _autocontrast(picture: np.ndarray, _: float) -> np.ndarray:
    """Stretches each channel to 0 and 255, as Pillow does."""
    levels, tables = np.arange(256), []
    for channel in range(3):
        low, high = int(picture[..., channel].min()), int(picture[..., channel].max())
        scale = 255 / (high - low) if high > low else 1.0
        offset = low if high > low else 0
        tables.append(np.clip((levels - offset) * scale, 0, 255).astype(np.uint8))
    return cv2.LUT(picture, np.stack(tables, 1)[None])


def _equalize(picture: np.ndarray, _: float) -> np.ndarray:
    """Makes each channel's levels equally frequent, as Pillow does."""
    tables = []
    for channel in range(3):
        counts = np.bincount(picture[..., channel].ravel(), minlength=256)
        step = int(counts.sum() - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        table = (below + step // 2) // step if step else np.arange(256)
        tables.append(np.minimum(table, 255).astype(np.uint8))
    return cv2.LUT(picture, np.stack(tables, 1)[None])


def _solarize(picture: np.ndarray, amount: float) -> np.ndarray:
    return np.where(picture < 256 * (1 - abs(amount)), picture, 255 - picture)


def _posterize(picture: np.ndarray, amount: float) -> np.ndarray:
    return picture & np.uint8(255 & 255 << round(4 * abs(amount)))


def _blend(picture: np.ndarray, other: np.ndarray, amount: float) -> np.ndarray:
    """Away from `other` where `amount` is above 0, towards it where it is below."""
    strength = 1 + 0.9 * amount
    return cv2.addWeighted(picture, strength, other, 1 - strength, 0)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _colour(picture: np.ndarray, amount: float) -> np.ndarray:
    return _blend(picture, cv2.cvtColor(_grey(picture), cv2.COLOR_GRAY2RGB), amount)


def _contrast(picture: np.ndarray, amount: float) -> np.ndarray:
    return _blend(picture, np.full_like(picture, round(_grey(picture).mean())), amount)


def _brightness(picture: np.ndarray, amount: float) -> np.ndarray:
    return _blend(picture, np.zeros_like(picture), amount)


def _sharpness(picture: np.ndarray, amount: float) -> np.ndarray:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's
    smooth = picture.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(picture, -1, kernel)[1:-1, 1:-1]
    return _blend(picture, smooth, amount)


def _affine(picture: np.ndarray, matrix: list[list[float]], shift: tuple[float, float]):
    """Moves what is at p from the centre to `matrix` p + shift; x before y."""
    height, width = picture.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre - matrix @ centre + shift
    full = np.column_stack([matrix, offset])
    return cv2.warpAffine(picture, full, (width, height), borderValue=FILL)


def _rotate(picture: np.ndarray, amount: float) -> np.ndarray:
    angle = math.radians(30 * amount)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(picture, [[cos, -sin], [sin, cos]], (0, 0))


OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    'identity': lambda picture, _: picture,
    'autocontrast': _autocontrast,
    'equalize': _equalize,
    'rotate': _rotate,
    'solarize': _solarize,
    'colour': _colour,
    'posterize': _posterize,
    'contrast': _contrast,
    'brightness': _brightness,
    'sharpness': _sharpness,
    'shear_x': lambda picture, amount: _affine(picture, [[1, 0.3 * amount], [0, 1]], (0, 0)),
    'shear_y': lambda picture, amount: _affine(picture, [[1, 0], [0.3 * amount, 1]], (0, 0)),
    'shift_x': lambda picture, amount: _affine(
        picture, [[1, 0], [0, 1]], (150 / 331 * amount * picture.shape[1], 0)
    ),
    'shift_y': lambda picture, amount: _affine(
        picture, [[1, 0], [0, 1]], (0, 150 / 331 * amount * picture.shape[0])
    ),
}
