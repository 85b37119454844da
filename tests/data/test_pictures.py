import colorsys

import cv2
import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.data import pictures


@pytest.fixture
def config():
    c = configs.default()
    c.image_size = 20
    return c


def smooth_picture(height, width):
    """A colourful gradient, which JPEG and resizing barely change."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 128 + 0 * x]
    return np.stack(planes, -1).round().astype(np.uint8)


def encode(picture, extension, *options):
    return cv2.imencode(extension, picture[..., ::-1], options)[1].tobytes()


def test_png_is_decoded_exactly_and_in_rgb():
    picture = smooth_picture(13, 17)
    np.testing.assert_array_equal(pictures.decode(encode(picture, '.png')), picture)


def test_jpeg_is_decoded_closely():
    picture = smooth_picture(64, 48)
    decoded = pictures.decode(encode(picture, '.jpg', cv2.IMWRITE_JPEG_QUALITY, 95))
    assert np.abs(decoded.astype(int) - picture).mean() < 2


def test_grey_files_and_arrays_get_three_equal_channels():
    grey = smooth_picture(9, 9)[..., 0]
    decoded = pictures.decode(cv2.imencode('.png', grey)[1].tobytes())
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(pictures.decode(grey), np.stack([grey] * 3, -1))


@pytest.mark.parametrize('data', [b'', b'no picture', b'\xff\xd8\xff\xe0' + b'\0' * 50])
def test_what_is_no_picture_is_told(data):
    with pytest.raises(pictures.BadPictureError):
        pictures.decode(data)


@pytest.mark.parametrize('shape', [(40, 80), (80, 40), (20, 20), (5, 7), (1, 1), (21, 300)])
def test_evaluation_takes_the_central_square(config, shape):
    config.crop_fraction = 0.875
    picture = pictures.for_evaluation(smooth_picture(*shape), config)
    assert picture.shape == (20, 20, 3)
    assert picture.dtype == np.uint8


def test_evaluation_crop_is_where_and_as_large_as_the_fraction_says(config):
    config.crop_fraction = 0.5
    config.interpolation = 'nearest'
    source = smooth_picture(40, 80)  # resized to itself: 20 / 0.5 is 40
    np.testing.assert_array_equal(pictures.for_evaluation(source, config), source[10:30, 30:50])


@pytest.mark.parametrize('interpolation', pictures.INTERPOLATIONS)
def test_every_interpolation_keeps_a_gradient(config, interpolation):
    config.interpolation = interpolation
    config.crop_fraction = 1.0
    picture = pictures.for_evaluation(smooth_picture(60, 60), config)
    assert np.abs(picture.astype(int) - smooth_picture(20, 20)).max() < 16


def test_inception_crops_have_the_areas_and_aspects_asked_for(config):
    rng = np.random.default_rng(0)
    config.augment.area = (0.05, 1.0)
    crops = np.array([pictures.inception_crop(375, 500, config.augment, rng) for _ in range(4000)])
    top, left, height, width = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 375).all()
    assert (left + width <= 500).all()
    whole = (height == 375) & (width == 500)
    assert whole.mean() < 0.01  # the ten draws nearly always find one
    area, aspect = (height * width / (375 * 500))[~whole], (width / height)[~whole]
    assert area.min() < 0.07
    assert area.max() > 0.9
    # A side is rounded by half a pixel, of at least 83.
    assert 0.75 - 0.02 < aspect.min() < 0.77
    assert 1.31 < aspect.max() < 4 / 3 + 0.02


def test_a_crop_that_cannot_fit_is_the_whole_picture(config):
    config.augment.area = (1.0, 1.0)
    config.augment.aspect = (3.0, 3.0)
    rng = np.random.default_rng(0)
    assert pictures.inception_crop(10, 10, config.augment, rng) == (0, 0, 10, 10)


def test_flip_happens_every_second_time_and_can_be_off(config):
    config.augment.crop = 'none'
    source = smooth_picture(20, 20)
    rng = np.random.default_rng(0)
    flipped = [
        np.array_equal(pictures.for_training(source, config, rng), source[:, ::-1])
        for _ in range(400)
    ]
    assert 160 < sum(flipped) < 240
    config.augment.flip = False
    np.testing.assert_array_equal(pictures.for_training(source, config, rng), source)


def test_padding_shifts_a_picture_by_up_to_its_width(config):
    config.augment.crop, config.augment.pad, config.augment.flip = 'pad', 2, False
    source = np.zeros((20, 20, 3), np.uint8)
    source[10, 10] = 255
    rng = np.random.default_rng(0)
    places = {
        tuple(int(i) for i in np.argwhere(pictures.for_training(source, config, rng)[..., 0])[0])
        for _ in range(500)
    }
    assert places == {(y, x) for y in range(8, 13) for x in range(8, 13)}


@pytest.mark.parametrize('kind', ['brightness', 'contrast', 'saturation', 'hue'])
def test_colours_change_within_their_bounds(config, kind):
    config.augment.crop, config.augment.flip = 'none', False
    config.augment[kind] = 0.2
    source = np.full((20, 20, 3), (150, 100, 80), np.uint8)
    source[10:] = (90, 120, 110)
    rng = np.random.default_rng(0)
    results = [pictures.for_training(source, config, rng).astype(int) for _ in range(200)]
    change = np.array([np.abs(result - source).max() for result in results])
    assert change.max() > 5
    if kind == 'brightness':
        assert change.max() <= 0.2 * 255 + 1
        assert all(np.ptp((result - source)[:10]) == 0 for result in results)
    elif kind == 'contrast':
        means = [np.abs(result.mean((0, 1)) - source.mean((0, 1))).max() for result in results]
        assert max(means) <= 1
    elif kind == 'saturation':
        weights = [0.299, 0.587, 0.114]
        assert max(np.abs(result @ weights - source @ weights).max() for result in results) <= 1
    else:
        turned = pictures._hue_rotation(1.0)
        np.testing.assert_allclose(turned, np.eye(3), atol=1e-9)
        third = pictures._hue_rotation(0.25) @ [0.5, 0.2, 0.2]
        assert abs(third @ [0.299, 0.587, 0.114] - (0.2 + 0.3 * 0.299)) < 1e-3
        assert colorsys.rgb_to_hsv(*np.clip(third, 0, 1))[0] > 0.05


def test_the_same_generator_gives_the_same_picture(config):
    config.augment.brightness = config.augment.saturation = 0.5
    source = smooth_picture(50, 60)
    once, again = (
        pictures.for_training(source, config, np.random.default_rng(7)) for _ in range(2)
    )
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize('shape', [(40, 80), (80, 40), (33, 33), (5, 7)])
def test_ten_crops_are_centre_corners_and_their_mirror_images(config, shape):
    config.crop_fraction = 0.5
    picture = smooth_picture(*shape)
    crops = pictures.ten_crops(picture, config)
    assert crops.shape == (10, 20, 20, 3)
    np.testing.assert_array_equal(crops[0], pictures.for_evaluation(picture, config))
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    scale = 40 / min(shape)
    size = round(shape[1] * scale), round(shape[0] * scale)
    whole = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    corners = [whole[:20, :20], whole[:20, -20:], whole[-20:, :20], whole[-20:, -20:]]
    np.testing.assert_array_equal(crops[1:5], corners)


@pytest.mark.parametrize(('height', 'width'), [(300, 500), (500, 300), (64, 64)])
def test_144_crops_are_of_four_sizes_three_squares_six_places_and_mirrored(height, width):
    c = configs.default()
    c.image_size = 64
    ramp = np.linspace(0, 255, 500)
    picture = np.stack(np.meshgrid(ramp[:width], ramp[:height]), -1)
    picture = np.concatenate([picture, picture[..., :1] * 0], -1).astype(np.uint8)
    crops = pictures.many_crops(picture, c)
    assert crops.shape == (144, 64, 64, 3)
    np.testing.assert_array_equal(crops[72:], crops[:72, :, ::-1])
    for index, scale in enumerate((256, 288, 320, 352)):
        side = round(64 * scale / 224)
        shape = (side, round(side * width / height))
        shape = shape if height <= width else (round(side * height / width), side)
        resized = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_LINEAR)
        for place in range(3):
            group = crops[18 * index + 6 * place :][:6]
            top, left = (round(place / 2 * (full - side)) for full in shape)
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
