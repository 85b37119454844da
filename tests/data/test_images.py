import cv2
import numpy as np
import pytest
from helpers import default_config

from xception_flax.data import decoding, images


@pytest.fixture
def config():
    return default_config(image_size=20)


def smooth_image(height, width):
    """A colourful gradient, which JPEG and resizing barely change."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 128 + 0 * x]
    return np.stack(planes, -1).round().astype(np.uint8)


def encode(image, extension, *options):
    return cv2.imencode(extension, image[..., ::-1], options)[1].tobytes()


def test_png_is_decoded_exactly_and_in_rgb():
    image = smooth_image(13, 17)
    np.testing.assert_array_equal(decoding.decode(encode(image, '.png')), image)


def test_jpeg_is_decoded_closely():
    image = smooth_image(64, 48)
    decoded = decoding.decode(encode(image, '.jpg', cv2.IMWRITE_JPEG_QUALITY, 95))
    assert np.abs(decoded.astype(int) - image).mean() < 2


def test_grey_files_and_arrays_get_three_equal_channels():
    grey = smooth_image(9, 9)[..., 0]
    decoded = decoding.decode(cv2.imencode('.png', grey)[1].tobytes())
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(decoding.decode(grey), np.stack([grey] * 3, -1))


@pytest.mark.parametrize('data', [b'', b'no image', b'\xff\xd8\xff\xe0' + b'\0' * 50])
def test_other_data_is_a_bad_image(data):
    with pytest.raises(decoding.BadImageError):
        decoding.decode(data)


@pytest.mark.parametrize('shape', [(40, 80), (80, 40), (20, 20), (5, 7), (1, 1), (21, 300)])
def test_evaluation_takes_the_central_square(config, shape):
    config.crop_fraction = 0.875
    image = images.for_evaluation(smooth_image(*shape), config)
    assert image.shape == (20, 20, 3)
    assert image.dtype == np.uint8


def test_evaluation_crop_is_where_and_as_large_as_the_fraction_says(config):
    config.crop_fraction = 0.5
    config.interpolation = 'nearest'
    source = smooth_image(40, 80)  # resized to itself: 20 / 0.5 is 40
    np.testing.assert_array_equal(images.for_evaluation(source, config), source[10:30, 30:50])


def test_flip_happens_every_second_time_and_can_be_off(config):
    config.augment.crop = 'none'
    source = smooth_image(20, 20)
    rng = np.random.default_rng(0)
    flipped = [
        np.array_equal(images.for_training(source, config, rng), source[:, ::-1])
        for _ in range(400)
    ]
    assert 160 < sum(flipped) < 240
    config.augment.flip = False
    np.testing.assert_array_equal(images.for_training(source, config, rng), source)


def test_padding_shifts_an_image_by_up_to_its_width(config):
    config.augment.crop, config.augment.pad, config.augment.flip = 'pad', 2, False
    source = np.zeros((20, 20, 3), np.uint8)
    source[10, 10] = 255
    rng = np.random.default_rng(0)
    positions = {
        tuple(int(i) for i in np.argwhere(images.for_training(source, config, rng)[..., 0])[0])
        for _ in range(500)
    }
    assert positions == {(y, x) for y in range(8, 13) for x in range(8, 13)}


@pytest.mark.parametrize('kind', ['brightness', 'contrast', 'saturation', 'hue'])
def test_colours_change_within_their_bounds(config, kind):
    config.augment.crop, config.augment.flip = 'none', False
    config.augment[kind] = 0.2
    source = np.full((20, 20, 3), (150, 100, 80), np.uint8)
    source[10:] = (90, 120, 110)
    rng = np.random.default_rng(0)
    results = [images.for_training(source, config, rng).astype(int) for _ in range(200)]
    change = np.array([np.abs(result - source).max() for result in results])
    assert change.max() > 5
    if kind == 'brightness':
        assert change.max() <= 0.2 * 255 + 1
        assert all(np.ptp((result - source)[:10]) == 0 for result in results)
    elif kind == 'contrast':
        means = [np.abs(result.mean((0, 1)) - source.mean((0, 1))).max() for result in results]
        assert max(means) <= 1


def test_the_same_generator_gives_the_same_image(config):
    config.augment.brightness = config.augment.saturation = 0.5
    source = smooth_image(50, 60)
    once, again = (images.for_training(source, config, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize('shape', [(40, 80), (80, 40), (33, 33), (5, 7)])
def test_ten_crops_are_centre_corners_and_their_flips(config, shape):
    config.crop_fraction = 0.5
    image = smooth_image(*shape)
    crops = images.ten_crops(image, config)
    assert crops.shape == (10, 20, 20, 3)
    np.testing.assert_array_equal(crops[0], images.for_evaluation(image, config))
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    scale = 40 / min(shape)
    size = round(shape[1] * scale), round(shape[0] * scale)
    whole = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    corners = [whole[:20, :20], whole[:20, -20:], whole[-20:, :20], whole[-20:, -20:]]
    np.testing.assert_array_equal(crops[1:5], corners)


@pytest.mark.parametrize(('height', 'width'), [(300, 500), (500, 300), (64, 64)])
def test_144_crops_are_four_sizes_three_squares_six_positions_and_flips(height, width):
    c = default_config(image_size=64)
    ramp = np.linspace(0, 255, 500)
    image = np.stack(np.meshgrid(ramp[:width], ramp[:height]), -1)
    image = np.concatenate([image, image[..., :1] * 0], -1).astype(np.uint8)
    crops = images.many_crops(image, c)
    assert crops.shape == (144, 64, 64, 3)
    np.testing.assert_array_equal(crops[72:], crops[:72, :, ::-1])
    for index, scale in enumerate((256, 288, 320, 352)):
        side = round(64 * scale / 224)
        shape = (side, round(side * width / height))
        shape = shape if height <= width else (round(side * height / width), side)
        resized = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
        for position in range(3):
            group = crops[18 * index + 6 * position :][:6]
            top, left = (round(position / 2 * (full - side)) for full in shape)
            square = resized[top : top + side, left : left + side]
            middle = (side - 64) // 2
            np.testing.assert_array_equal(
                group[0], square[middle : middle + 64, middle : middle + 64]
            )
            np.testing.assert_array_equal(group[1], square[:64, :64])
            np.testing.assert_array_equal(group[4], square[-64:, -64:])
            np.testing.assert_array_equal(
                group[5], cv2.resize(square, (64, 64), interpolation=cv2.INTER_LINEAR)
            )
