"""Operations on one image, on the host: crop, resize, colours; uint8 in, uint8 out."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from ml_collections import ConfigDict

from xception_flax.data import protocols
from xception_flax.data.augmentation import erase, rand_augment

CROPS = ('random', 'pad', 'none')  # of training images

cv2.setNumThreads(1)  # images are already prepared in parallel


def for_evaluation(image: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Crops the centre and resizes, as `config.protocol` does it.

    Args:
      image: `[H, W, 3]` uint8.
      config: the run's config.

    Returns:
      `[image_size, image_size, 3]` uint8.
    """
    return _central(image, config, protocols.setting(config, 'crop_fraction'))


def ten_crops(image: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Resizes as `for_evaluation`; takes the centre, the four corners and their horizontal flips.

    As in AlexNet's test (Krizhevsky et al. 2012, section 4.1), except that the corners are those
    of the whole resized image, not of its central square.

    Args:
      image: `[H, W, 3]` uint8.
      config: the run's config.

    Returns:
      `[10, image_size, image_size, 3]` uint8: centre, top left, top right, bottom left, bottom
      right, then the horizontal flips of these.
    """
    image = _fit(image, config, protocols.setting(config, 'crop_fraction'))
    return _with_flips(_five_crops(image, config.image_size))


def many_crops(image: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Takes the 144 crops of Inception's test (Szegedy et al. 2015, section 7).

    The shorter side is resized to 256, 288, 320 and 352 pixels for 224-pixel networks, in
    proportion for others. Each size gives three squares, at both ends and in the middle; each
    square gives its centre, its four corners, and all of it resized; each crop also flipped.

    Args:
      image: `[H, W, 3]` uint8.
      config: the run's config; `crop_fraction` is not used.

    Returns:
      `[144, image_size, image_size, 3]` uint8.
    """
    size, crops = config.image_size, []
    for scale in (256, 288, 320, 352):
        resized = _fit(image, config, 224 / scale)
        height, width = resized.shape[:2]
        side = min(height, width)
        for position in (0, 0.5, 1):
            top, left = round(position * (height - side)), round(position * (width - side))
            square = resized[top : top + side, left : left + side]
            crops += [*_five_crops(square, size), _resize(square, config)]
    return _with_flips(crops)


# How evaluation crops an image, by the number of crops.
EVALUATION_CROPS: dict[int, Callable[[np.ndarray, ConfigDict], np.ndarray]] = {
    1: lambda image, config: for_evaluation(image, config)[None],
    10: ten_crops,
    144: many_crops,
}


def for_training(image: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> np.ndarray:
    """Crops, flips and colours an image at random.

    Args:
      image: `[H, W, 3]` uint8.
      config: the run's config; `config.augment` has the settings.
      rng: random number generator.

    Returns:
      `[image_size, image_size, 3]` uint8.
    """
    size, augment = config.image_size, config.augment
    if augment.crop == 'random':
        area, aspect = (protocols.setting(config, f'augment.{name}') for name in ('area', 'aspect'))
        height, width = image.shape[:2]
        top, left, height, width = protocols.of(config).crop(height, width, area, aspect, rng)
        image = _resize(image[top : top + height, left : left + width], config)
    else:
        image = _central(image, config, 1.0)
    if augment.crop == 'pad':
        image = cv2.copyMakeBorder(image, *(augment.pad,) * 4, cv2.BORDER_CONSTANT)
        top, left = rng.integers(0, 2 * augment.pad + 1, 2)
        image = image[top : top + size, left : left + size]
    if augment.flip and rng.random() < 0.5:
        image = cv2.flip(image, 1)
    image = np.ascontiguousarray(image)
    if augment.randaugment:
        image = rand_augment(image, augment.randaugment, augment.magnitude, rng)
    image = _colour(image, config, rng)
    if augment.random_erasing and rng.random() < augment.random_erasing:
        image = erase(image, rng)
    return image


def _central(image: np.ndarray, config: ConfigDict, fraction: float) -> np.ndarray:
    """The network's view of the centre."""
    interpolation = protocols.setting(config, 'interpolation')
    return protocols.of(config).evaluation(image, config.image_size, fraction, interpolation)


def _fit(image: np.ndarray, config: ConfigDict, fraction: float) -> np.ndarray:
    """Resizes the shorter side to `image_size / fraction`."""
    interpolation = protocols.setting(config, 'interpolation')
    return protocols.fit(
        image, config.image_size, fraction, interpolation, protocols.of(config).resize
    )


def _resize(image: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Resizes to the network's size, whatever the aspect."""
    interpolation = protocols.setting(config, 'interpolation')
    return protocols.of(config).resize(image, config.image_size, config.image_size, interpolation)


def _five_crops(image: np.ndarray, size: int) -> list[np.ndarray]:
    """Centre, top left, top right, bottom left and bottom right."""
    bottom, right = image.shape[0] - size, image.shape[1] - size
    corners = [(top, left) for top in (0, bottom) for left in (0, right)]
    offsets = [(bottom // 2, right // 2), *corners]
    return [image[top : top + size, left : left + size] for top, left in offsets]


def _with_flips(crops: list[np.ndarray]) -> np.ndarray:
    """The crops, then their horizontal flips."""
    together = np.stack(crops)
    return np.concatenate([together, together[:, :, ::-1]])


def _colour(image: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, saturation, hue and contrast, in this order, as `tf.image` does."""
    amounts = {
        name: protocols.setting(config, f'augment.{name}')
        for name in ('brightness', 'saturation', 'hue', 'contrast')
    }
    if not any(amounts.values()):
        return image
    x = image.astype(np.float32)
    if amount := amounts['brightness']:
        x += 255 * rng.uniform(-amount, amount)
    if amount := amounts['saturation']:
        x = saturate(x, rng.uniform(1 - amount, 1 + amount))
    if amount := amounts['hue']:
        x = turn_hue(x, rng.uniform(-amount, amount))
    if amount := amounts['contrast']:
        mean = x.mean((0, 1))
        x = mean + (x - mean) * rng.uniform(1 - amount, 1 + amount)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def saturate(x: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the saturation of HSV colours, up to 1: `tf.image.adjust_saturation`.

    Saturation is (max - min) / max of the channels, and they keep their maximum and their order; so
    all distances from the maximum grow by the same factor.

    Args:
      x: `[H, W, 3]` float32.
      factor: 0 for grey.
    """
    channels = cv2.split(x)
    top, bottom = _extremes(channels)
    growth = np.clip(top / np.maximum(top - bottom, 1e-6), 0, factor)
    return cv2.merge([top - (top - channel) * growth for channel in channels])


def _extremes(channels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the smallest of the channels; NumPy is slow along an axis of three."""
    first, second, third = channels
    return cv2.max(cv2.max(first, second), third), cv2.min(cv2.min(first, second), third)


def turn_hue(x: np.ndarray, turns: float) -> np.ndarray:
    """Rotates the hue of HSV colours: `tf.image.adjust_hue`.

    Args:
      x: `[H, W, 3]` float32.
      turns: fraction of the colour circle.
    """
    red, green, blue = channels = cv2.split(x)
    top, bottom = _extremes(channels)
    spread = np.maximum(top - bottom, 1e-6)
    # In sixths of the circle; red is at 0, green at 2, blue at 4.
    hue = np.select(
        [top == red, top == green],
        [(green - blue) / spread, 2 + (blue - red) / spread],
        4 + (red - green) / spread,
    )
    sixths = (np.array([5, 3, 1]) + hue[..., None] + 6 * turns) % 6
    weight = np.clip(np.minimum(sixths, 4 - sixths), 0, 1)
    return (top[..., None] - (top - bottom)[..., None] * weight).astype(np.float32)
