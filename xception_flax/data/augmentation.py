"""RandAugment and random erasing, on one image `[H, W, 3]` uint8."""

import math
from collections.abc import Callable

import cv2
import numpy as np

FILL = (128, 128, 128)  # colour of pixels from outside the image


def rand_augment(
    image: np.ndarray, count: int, magnitude: float, rng: np.random.Generator
) -> np.ndarray:
    """RandAugment (Cubuk et al. 2019): applies `count` operations drawn from `OPERATIONS`.

    The list is the paper's. At magnitude 10 the ranges are those of AutoAugment (Cubuk et al. 2018,
    Table 6): 30 degrees, shears of 0.3, shifts of 150 of 331 pixels, 4 bits, every pixel solarised,
    colour factors of 0.1 and 1.9. If an operation has two directions, each has probability 1/2. As
    in timm's "increasing" form, a larger magnitude always means a larger change.

    Args:
      image: `[H, W, 3]` uint8.
      count: number of operations, applied one after the other.
      magnitude: strength, 0 to 10.
      rng: random number generator.
    """
    for number in rng.integers(0, len(OPERATIONS), count):
        amount = magnitude / 10 * (1 if rng.random() < 0.5 else -1)
        image = list(OPERATIONS.values())[number](image, amount)
    return image


def erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replaces a random rectangle by noise (Zhong et al. 2017).

    The rectangle covers 0.02 to 1/3 of the image, with an aspect of 0.3 to 1/0.3, as in timm. The
    first of ten draws that fits is used; if none fits, the image stays as it is.

    Args:
      image: `[H, W, 3]` uint8.
      rng: random number generator.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            image = image.copy()
            image[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), np.uint8)
            break
    return image


def _autocontrast(image: np.ndarray, _: float) -> np.ndarray:
    """Stretches each channel to the range 0 to 255, as Pillow does."""
    levels, tables = np.arange(256), []
    for channel in range(3):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        scale = 255 / (high - low) if high > low else 1.0
        offset = low if high > low else 0
        tables.append(np.clip((levels - offset) * scale, 0, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, 1)[None])


def _equalize(image: np.ndarray, _: float) -> np.ndarray:
    """Equalises the histogram of each channel, as Pillow does."""
    tables = []
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = int(counts.sum() - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        table = (below + step // 2) // step if step else np.arange(256)
        tables.append(np.minimum(table, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, 1)[None])


def _solarize(image: np.ndarray, amount: float) -> np.ndarray:
    return np.where(image < 256 * (1 - abs(amount)), image, 255 - image)


def _posterize(image: np.ndarray, amount: float) -> np.ndarray:
    return image & np.uint8(255 & 255 << round(4 * abs(amount)))


def _blend(image: np.ndarray, other: np.ndarray, amount: float) -> np.ndarray:
    """Moves the image away from `other` if `amount` > 0, towards it if `amount` < 0."""
    strength = 1 + 0.9 * amount
    return cv2.addWeighted(image, strength, other, 1 - strength, 0)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _colour(image: np.ndarray, amount: float) -> np.ndarray:
    return _blend(image, cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), amount)


def _contrast(image: np.ndarray, amount: float) -> np.ndarray:
    return _blend(image, np.full_like(image, round(_grey(image).mean())), amount)


def _brightness(image: np.ndarray, amount: float) -> np.ndarray:
    return _blend(image, np.zeros_like(image), amount)


def _sharpness(image: np.ndarray, amount: float) -> np.ndarray:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # as in Pillow
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return _blend(image, smooth, amount)


def _affine(image: np.ndarray, matrix: list[list[float]], shift: tuple[float, float]) -> np.ndarray:
    """Moves the pixel at p = (x, y), relative to the centre, to `matrix` p + shift."""
    height, width = image.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre - matrix @ centre + shift
    full = np.column_stack([matrix, offset])
    return cv2.warpAffine(image, full, (width, height), borderValue=FILL)


def _rotate(image: np.ndarray, amount: float) -> np.ndarray:
    angle = math.radians(30 * amount)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(image, [[cos, -sin], [sin, cos]], (0, 0))


OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    'identity': lambda image, _: image,
    'autocontrast': _autocontrast,
    'equalize': _equalize,
    'rotate': _rotate,
    'solarize': _solarize,
    'colour': _colour,
    'posterize': _posterize,
    'contrast': _contrast,
    'brightness': _brightness,
    'sharpness': _sharpness,
    'shear_x': lambda image, amount: _affine(image, [[1, 0.3 * amount], [0, 1]], (0, 0)),
    'shear_y': lambda image, amount: _affine(image, [[1, 0], [0.3 * amount, 1]], (0, 0)),
    'shift_x': lambda image, amount: _affine(
        image, [[1, 0], [0, 1]], (150 / 331 * amount * image.shape[1], 0)
    ),
    'shift_y': lambda image, amount: _affine(
        image, [[1, 0], [0, 1]], (0, 150 / 331 * amount * image.shape[0])
    ),
}
