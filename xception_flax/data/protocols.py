"""How an image becomes what a network sees, as the programs that a protocol is named after do it.

    inception    TensorFlow's Inception (research/slim in tensorflow/models)
    timm         PyTorch Image Models
    torchvision  torchvision's reference transforms
    opencv       ours: OpenCV's resizing, three times as fast as Pillow's

A protocol has an algorithm for each step, and defaults for the settings that are not given. Tests
compare the first three with what those programs compute (`tests/data/test_protocols.py`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

Box = tuple[int, int, int, int]  # top, left, height and width in pixels
Range = tuple[float, float]

PANORAMA = 8  # largest ratio of the sides; of a longer image only the middle is used


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The steps from a decoded image to the network's input.

    Attributes:
      resize: `(image, height, width, interpolation)` to the resized image.
      evaluation: `(image, size, crop_fraction, interpolation)` to `[size, size, 3]`.
      crop: `(height, width, area, aspect, rng)` to the box of a random crop.
      interpolations: what `resize` knows.
      defaults: the settings, by path.
    """

    resize: Callable[[np.ndarray, int, int, str], np.ndarray]
    evaluation: Callable[[np.ndarray, int, float, str], np.ndarray]
    crop: Callable[[int, int, Range, Range, np.random.Generator], Box]
    interpolations: tuple[str, ...]
    defaults: Mapping[str, Any]


def of(config: ConfigDict) -> Protocol:
    """The protocol of a config."""
    return PROTOCOLS[config.protocol]


def setting(config: ConfigDict, path: str) -> Any:
    """A setting of the config, or if it is not given, that of the protocol, if that has one."""
    value = config[path]
    return of(config).defaults.get(path) if value is None else value


def fill(config: ConfigDict) -> None:
    """Gives the settings that are not given those of the protocol."""
    for path in of(config).defaults:
        config.update_from_flattened_dict({path: setting(config, path)})


# TensorFlow's Inception.

# Before OpenCV 5 warps round positions to 1/32 of a pixel: a fifth of all values differ by a level.
EXACT_WARP = int(cv2.__version__.partition('.')[0]) >= 5


def tensorflow_bilinear(image: np.ndarray, height: int, width: int, _: str) -> np.ndarray:
    """`tf.compat.v1.image.resize_bilinear`: output pixel i is at input i * (input / output).

    It does not smooth before it shrinks, and its pixels are points at their top left corners.
    """
    if EXACT_WARP:
        inputs = np.diag([image.shape[1] / width, image.shape[0] / height, 1.0])[:2]  # of outputs
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(
            image, inputs, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )

    def neighbours(n: int, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(n, dtype=np.float32) * np.float32(total / n)
        first = np.minimum(at.astype(np.int32), total - 1)
        return first, np.minimum(first + 1, total - 1), at - first

    above, below, down = neighbours(height, image.shape[0])
    left, right, across = neighbours(width, image.shape[1])
    rows = image[above].astype(np.float32)
    rows += (image[below] - rows) * down[:, None, None]
    found = rows[:, left]
    found += (rows[:, right] - found) * across[:, None]
    return np.rint(found).astype(np.uint8)


def tensorflow_central(
    image: np.ndarray, size: int, fraction: float, interpolation: str
) -> np.ndarray:
    """`tf.image.central_crop` of both sides, then resized to a square."""
    top, left = (int((side - side * fraction) / 2) for side in image.shape[:2])
    inside = image[top : image.shape[0] - top, left : image.shape[1] - left]
    return tensorflow_bilinear(inside, size, size, interpolation)


def tensorflow_crop(
    height: int, width: int, area: Range, aspect: Range, rng: np.random.Generator
) -> Box:
    """`tf.image.sample_distorted_bounding_box`, with the whole image as its box.

    For a random aspect, the height is uniform between those of the smallest and the largest area,
    as far as the crop fits. The first of 100 draws that covers a tenth of the image is used.
    """
    low, high = (part * height * width for part in area)
    for _ in range(100):
        ratio = rng.uniform(*aspect)
        h, largest = (round(math.sqrt(part / ratio)) for part in (low, high))
        if round(largest * ratio) > width:
            largest = int((width + 0.5 - 1e-7) / ratio)
            largest -= round(largest * ratio) > width
        largest = min(largest, height)
        h = int(rng.integers(h, largest + 1)) if h < largest else largest
        w = round(h * ratio)
        if w * h < low:
            h += 1
        elif w * h > high:
            h -= 1
        w = round(h * ratio)
        fits = 0 < w <= width and 0 < h <= height and low <= w * h <= high
        if fits and 10 * w * h >= height * width:
            # TensorFlow never takes the last position.
            top, left = (
                int(rng.integers(whole - part)) if part < whole else 0
                for whole, part in ((height, h), (width, w))
            )
            return top, left, h, w
    return 0, 0, height, width


# Pillow, on which timm and torchvision are built.

PILLOW = {
    'nearest': Image.Resampling.NEAREST,
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'area': Image.Resampling.BOX,
    'lanczos': Image.Resampling.LANCZOS,
}


def pillow_resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Pillow's resizing, which smooths as much as it shrinks."""
    return np.asarray(Image.fromarray(image).resize((width, height), PILLOW[interpolation]))


def _torch_central(rounded: Callable[[float], int]) -> Callable:
    def central(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
        """`Resize` of torchvision, which rounds the longer side down, and `CenterCrop`."""
        image = _middle(image)
        short, shortest = rounded(size / fraction), min(image.shape[:2])
        height, width = (int(short * side / shortest) for side in image.shape[:2])
        image = pillow_resize(image, height, width, interpolation)
        top, left = (round((side - size) / 2) for side in (height, width))
        return image[top : top + size, left : left + size]

    return central


def torch_crop(
    height: int, width: int, area: Range, aspect: Range, rng: np.random.Generator
) -> Box:
    """`RandomResizedCrop`: area uniform, aspect uniform in its logarithm.

    If none of ten draws fits, the largest central box whose aspect is in the range.
    """
    for _ in range(10):
        part = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _anywhere(height, width, h, w, rng)
    w, h = width, height
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w


# OpenCV.

# Only 'area' smooths before it shrinks.
OPENCV = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}


def opencv_resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """OpenCV's resizing."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=OPENCV[interpolation])


def fit(
    image: np.ndarray, size: int, fraction: float, interpolation: str, resize: Callable
) -> np.ndarray:
    """Resizes the shorter side to `size / fraction`, rounded."""
    image = _middle(image)
    height, width = image.shape[:2]
    scale = round(size / fraction) / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    return resize(image, height, width, interpolation)


def opencv_central(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """The shorter side resized to `size / fraction`, then the central square."""
    image = fit(image, size, fraction, interpolation, opencv_resize)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def uniform_crop(
    height: int, width: int, area: Range, aspect: Range, rng: np.random.Generator
) -> Box:
    """Area and aspect uniform, as GoogLeNet's paper describes it (Szegedy et al. 2015, section 6).

    The first of ten draws that fits, or the whole image.
    """
    for _ in range(10):
        part = rng.uniform(*area) * height * width
        ratio = rng.uniform(*aspect)
        w, h = round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _anywhere(height, width, h, w, rng)
    return 0, 0, height, width


def _anywhere(height: int, width: int, h: int, w: int, rng: np.random.Generator) -> Box:
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return int(top), int(left), h, w


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of a panorama, which would become very large."""
    height, width = image.shape[:2]
    longest = PANORAMA * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]


def _defaults(
    interpolation: str, area: Range, aspect: Range, brightness: float = 0.0, saturation: float = 0.0
) -> dict[str, Any]:
    return {
        'interpolation': interpolation,
        'crop_fraction': 0.875,
        'augment.area': area,
        'augment.aspect': aspect,
        'augment.brightness': brightness,
        'augment.contrast': 0.0,
        'augment.saturation': saturation,
        'augment.hue': 0.0,
    }


_TORCH = (0.08, 1.0), (3 / 4, 4 / 3)
PROTOCOLS = {
    # Its colours are those of `fast_mode`, with which it trains.
    'inception': Protocol(
        tensorflow_bilinear, tensorflow_central, tensorflow_crop, ('bilinear',),
        _defaults('bilinear', (0.05, 1.0), (0.75, 1.33), 32 / 255, 0.5),
    ),
    'timm': Protocol(
        pillow_resize, _torch_central(math.floor), torch_crop, tuple(PILLOW),
        _defaults('bicubic', *_TORCH),
    ),
    'torchvision': Protocol(
        pillow_resize, _torch_central(round), torch_crop, tuple(PILLOW),
        _defaults('bilinear', *_TORCH),
    ),
    'opencv': Protocol(
        opencv_resize, opencv_central, uniform_crop, tuple(OPENCV),
        _defaults('bilinear', (0.05, 1.0), (3 / 4, 4 / 3)),
    ),
}  # fmt: skip
