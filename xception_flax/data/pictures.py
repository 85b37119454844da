"""What is done to one picture on the host: decode, crop, resize, colours. uint8 in, uint8 out."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from ml_collections import ConfigDict

from xception_flax.data.augmentation import erase, rand_augment

# OpenCV's names. None of them but 'area' smooths before it shrinks; TensorFlow's do not either.
INTERPOLATIONS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}
CROPS = ('inception', 'pad', 'none')  # of training pictures
ATTEMPTS = 10  # at drawing a crop that fits, before the whole picture is taken

PANORAMA = 8  # times as long as high: more than this of the middle is not looked at

# Reading and decoding is parallel over pictures already.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong, we tell


class BadPictureError(Exception):
    """The bytes are no picture that can be read."""


def decode(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes a JPEG or PNG, or widens a grey array, to RGB `[H, W, 3]` uint8.

    What is inside counts, not the file's name. CMYK becomes RGB, 16 bits become 8, transparency is
    dropped, and a rotation that EXIF asks for is done (TensorFlow's decoder does not do it).

    Raises:
      BadPictureError: it cannot be read, or ends too early.
    """
    if isinstance(data, np.ndarray):
        return data if data.ndim == 3 else np.repeat(data[..., None], 3, -1)
    if not data:
        raise BadPictureError('it is empty')
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise BadPictureError(' '.join(str(error).split())) from error
    if picture is None:
        kinds = {b'\xff\xd8\xff': 'JPEG', b'\x89PNG': 'PNG'}
        kind = next((name for start, name in kinds.items() if data.startswith(start)), None)
        raise BadPictureError(f'a damaged {kind}' if kind else 'it is neither JPEG nor PNG')
    return picture


def for_evaluation(picture: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Resizes the shorter side to `image_size / crop_fraction` and takes the central square.

    Args:
      picture: `[H, W, 3]` uint8.
      config: the run's config.

    Returns:
      `[image_size, image_size, 3]` uint8.
    """
    return _central(picture, config.image_size, config.crop_fraction, config.interpolation)


def ten_crops(picture: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Resizes as `for_evaluation` does, and takes the centre, the four corners and their mirrors.

    AlexNet's test (Krizhevsky et al. 2012, section 4.1), but for the corners: these are of the
    whole resized picture, AlexNet's of its central square.

    Args:
      picture: `[H, W, 3]` uint8.
      config: the run's config.

    Returns:
      `[10, image_size, image_size, 3]` uint8: centre, top left, top right, bottom left, bottom
      right, then the mirror images of these.
    """
    size = config.image_size
    picture = _fit(picture, size, config.crop_fraction, config.interpolation)
    return _mirrored(_five_crops(picture, size))


def many_crops(picture: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Inception's test of 144 crops (Szegedy et al. 2015, section 7).

    The shorter side becomes 256, 288, 320 and 352 pixels for a network that takes 224, and as much
    of others. Of each of these, the squares at both ends and in the middle; of each square, centre,
    four corners, and all of it resized; and the mirrors.

    Args:
      picture: `[H, W, 3]` uint8.
      config: the run's config; `crop_fraction` has no part in it.

    Returns:
      `[144, image_size, image_size, 3]` uint8.
    """
    size, crops = config.image_size, []
    for scale in (256, 288, 320, 352):
        resized = _fit(picture, size, 224 / scale, config.interpolation)
        height, width = resized.shape[:2]
        side = min(height, width)
        for share in (0, 0.5, 1):
            top, left = round(share * (height - side)), round(share * (width - side))
            square = resized[top : top + side, left : left + side]
            crops += [*_five_crops(square, size), _resize(square, size, size, config.interpolation)]
    return _mirrored(crops)


# Ways to look at a picture in evaluation, by the number of crops.
EVALUATION_CROPS: dict[int, Callable[[np.ndarray, ConfigDict], np.ndarray]] = {
    1: lambda picture, config: for_evaluation(picture, config)[None],
    10: ten_crops,
    144: many_crops,
}


def for_training(picture: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> np.ndarray:
    """Crops, flips and colours a picture at random.

    Args:
      picture: `[H, W, 3]` uint8.
      config: the run's config; `config.augment` says what is done.
      rng: all that is random comes from here.

    Returns:
      `[image_size, image_size, 3]` uint8.
    """
    size, augment = config.image_size, config.augment
    if augment.crop == 'inception':
        height, width = picture.shape[:2]
        top, left, height, width = inception_crop(height, width, augment, rng)
        picture = picture[top : top + height, left : left + width]
        picture = _resize(picture, size, size, config.interpolation)
    else:
        picture = _central(picture, size, 1.0, config.interpolation)
    if augment.crop == 'pad':
        picture = cv2.copyMakeBorder(picture, *(augment.pad,) * 4, cv2.BORDER_CONSTANT)
        top, left = rng.integers(0, 2 * augment.pad + 1, 2)
        picture = picture[top : top + size, left : left + size]
    if augment.flip and rng.random() < 0.5:
        picture = cv2.flip(picture, 1)
    picture = np.ascontiguousarray(picture)
    if augment.randaugment:
        picture = rand_augment(picture, augment.randaugment, augment.magnitude, rng)
    picture = _colour(picture, augment, rng)
    if augment.random_erasing and rng.random() < augment.random_erasing:
        picture = erase(picture, rng)
    return picture


def inception_crop(
    height: int, width: int, augment: ConfigDict, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws a crop of random area and aspect, both uniform.

    As `inception_preprocessing` of TensorFlow's models does, but for its bounding boxes.

    Returns:
      top, left, height and width in pixels. After ten draws that do not fit: the whole picture.
    """
    for _ in range(ATTEMPTS):
        area = rng.uniform(*augment.area) * height * width
        aspect = rng.uniform(*augment.aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return int(top), int(left), h, w
    return 0, 0, height, width


def _central(picture: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    picture = _fit(picture, size, fraction, interpolation)
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def _five_crops(picture: np.ndarray, size: int) -> list[np.ndarray]:
    """Centre, top left, top right, bottom left and bottom right."""
    bottom, right = picture.shape[0] - size, picture.shape[1] - size
    corners = [(top, left) for top in (0, bottom) for left in (0, right)]
    places = [(bottom // 2, right // 2), *corners]
    return [picture[top : top + size, left : left + size] for top, left in places]


def _mirrored(crops: list[np.ndarray]) -> np.ndarray:
    """The crops, then their mirror images."""
    together = np.stack(crops)
    return np.concatenate([together, together[:, :, ::-1]])


def _fit(picture: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """Resizes the shorter side to `size / fraction`."""
    height, width = picture.shape[:2]
    longest = PANORAMA * min(height, width)
    if max(height, width) > longest:
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        picture = picture[top : top + longest, left : left + longest]
        height, width = picture.shape[:2]
    scale = round(size / fraction) / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    return _resize(picture, height, width, interpolation)


def _resize(picture: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=INTERPOLATIONS[interpolation])


def _colour(picture: np.ndarray, augment: ConfigDict, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, in this order, in floating point."""
    if not (augment.brightness or augment.contrast or augment.saturation or augment.hue):
        return picture
    x = picture.astype(np.float32)
    if augment.brightness:
        x += 255 * rng.uniform(-augment.brightness, augment.brightness)
    if augment.contrast:
        mean = x.mean((0, 1))
        x = mean + (x - mean) * rng.uniform(1 - augment.contrast, 1 + augment.contrast)
    if augment.saturation:
        grey = x @ np.array([0.299, 0.587, 0.114], np.float32)
        share = rng.uniform(1 - augment.saturation, 1 + augment.saturation)
        x = grey[..., None] + (x - grey[..., None]) * share
    if augment.hue:
        x = x @ _hue_rotation(rng.uniform(-augment.hue, augment.hue)).astype(np.float32).T
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def _hue_rotation(turns: float) -> np.ndarray:
    """The matrix, `[3, 3]`, that turns RGB colours around the grey axis of YIQ space."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.linalg.inv(to_yiq) @ turn @ to_yiq
