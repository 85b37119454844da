"""From paths, bytes and arrays to the input of a network."""

import cv2
import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.base.errors import UserError
from xception_flax.data import images as ops
from xception_flax.inference import preprocess


@pytest.fixture
def config():
    c = configs.default()
    c.image_size = 20
    return c


def image(height=40, width=60, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def png(array):
    return cv2.imencode('.png', array[..., ::-1])[1].tobytes()


def test_paths_bytes_and_arrays_give_the_scaled_pixels_of_evaluation(config, tmp_path):
    path = tmp_path / 'some.png'
    path.write_bytes(png(image()))
    x = preprocess([str(path), path, png(image()), image()], config)
    assert (x.shape, x.dtype) == ((4, 20, 20, 3), np.float32)
    expected = ops.for_evaluation(image(), config) / 127.5 - 1
    # uint8 / 127.5 - 1 rounds twice in float32.
    np.testing.assert_allclose(x, np.stack([expected] * 4), atol=2e-7)


def test_the_ten_crops_of_an_image_are_neighbours(config):
    several = [image(seed=0), image(50, 40, seed=1)]
    x = np.asarray(preprocess(several, config, crops=10))
    assert x.shape == (20, 20, 20, 3)
    expected = np.concatenate([ops.ten_crops(one, config) for one in several])
    np.testing.assert_allclose(x, expected / 127.5 - 1, atol=2e-7)


def test_one_image_grey_images_and_an_array_of_several_are_accepted(config):
    assert preprocess(image(), config).shape == (1, 20, 20, 3)
    assert preprocess(png(image()), config).shape == (1, 20, 20, 3)
    assert preprocess(np.stack([image()] * 3), config).shape == (3, 20, 20, 3)
    assert preprocess([image()[..., 0]], config).shape == (1, 20, 20, 3)
    assert preprocess([], config).shape == (0, 20, 20, 3)


@pytest.mark.parametrize(
    ('bad', 'says'),
    [
        ('/nowhere/cat.jpg', 'there is no file /nowhere/cat.jpg'),
        (b'', 'image 1 cannot be read: it is empty'),
        (b'text', 'image 1 cannot be read: it is no JPEG, PNG, WebP, BMP, GIF or TIFF'),
        (png(image())[:200], 'image 1 cannot be read: a damaged PNG'),
        (image() / 255, 'image 1 cannot be read: it is float64 [40, 60, 3]; give uint8'),
        (image()[:0], 'image 1 cannot be read: it is uint8 [0, 60, 3]; give uint8 [H, W, 3]'),
        (np.zeros((4, 4, 4), np.uint8), 'it is uint8 [4, 4, 4]; give uint8 [H, W, 3]'),
        (None, 'image 1 cannot be read: it is a NoneType; give a path, bytes, or uint8'),
    ],
    ids=['missing', 'empty', 'text', 'cut', 'float', 'void', 'alpha', 'none'],
)
def test_the_error_of_an_unreadable_image_names_it(config, bad, says):
    with pytest.raises(UserError) as caught:
        preprocess([image(), bad], config)
    assert says in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_folder_is_not_an_image(config, tmp_path):
    with pytest.raises(UserError, match=f'{tmp_path} cannot be read: Is a directory'):
        preprocess(tmp_path, config)


def test_another_number_of_crops_is_refused(config):
    with pytest.raises(UserError, match='crops is 3; take one of'):
        preprocess(image(), config, crops=3)
