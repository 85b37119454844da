import keras
import numpy as np
import pytest

from xception_flax.data import scaling

IMAGES = np.arange(0, 255, dtype=np.uint8)[: 2 * 6 * 7 * 3].reshape(2, 6, 7, 3)


@pytest.mark.parametrize('mode', scaling.MODES)
def test_pixels_become_what_keras_makes_of_them(mode):
    if mode == 'unit':
        expected = keras.layers.Rescaling(1 / 255)(IMAGES)
    else:
        images = IMAGES.astype(np.float32)
        expected = keras.applications.imagenet_utils.preprocess_input(images, mode=mode)
    # Two roundings in another order.
    np.testing.assert_allclose(scaling.scale(IMAGES, mode), expected, rtol=1e-6, atol=1e-6)


def test_tf_is_from_minus_one_to_one():
    pixels = np.array([[0, 127, 128, 255]], np.uint8)
    found = scaling.scale(pixels, 'tf')
    np.testing.assert_allclose(found, [[-1, -1 / 255, 1 / 255, 1]], atol=1e-7)
