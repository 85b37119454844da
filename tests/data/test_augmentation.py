import cv2
import numpy as np
import pytest
from helpers import default_config
from PIL import Image, ImageEnhance, ImageOps

from xception_flax.data import augmentation, images
from xception_flax.data.augmentation import OPERATIONS

RNG = np.random.default_rng(0)
SMALL = RNG.integers(30, 220, (5, 7, 3), dtype=np.uint8)
IMAGE = cv2.resize(SMALL, (70, 50), interpolation=cv2.INTER_CUBIC)
PILLOW = Image.fromarray(IMAGE)


@pytest.mark.parametrize(
    ('name', 'amount', 'expected'),
    [
        ('identity', 1.0, PILLOW),
        ('autocontrast', 1.0, ImageOps.autocontrast(PILLOW)),
        ('equalize', 1.0, ImageOps.equalize(PILLOW)),
        ('solarize', 0.5, ImageOps.solarize(PILLOW, 128)),
        ('posterize', -1.0, ImageOps.posterize(PILLOW, 4)),
        ('posterize', 0.5, ImageOps.posterize(PILLOW, 6)),
    ],
)
def test_operations_on_levels_are_pillows(name, amount, expected):
    np.testing.assert_array_equal(OPERATIONS[name](IMAGE, amount), np.asarray(expected))


@pytest.mark.parametrize('amount', [-1.0, -0.4, 0.4, 1.0])
@pytest.mark.parametrize(
    ('name', 'enhance'),
    [
        ('colour', ImageEnhance.Color),
        ('contrast', ImageEnhance.Contrast),
        ('brightness', ImageEnhance.Brightness),
        ('sharpness', ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows_but_for_rounding(name, enhance, amount):
    expected = np.asarray(enhance(PILLOW).enhance(1 + 0.9 * amount), int)
    # Two roundings, of which the first is enlarged up to 1.9 times; and Pillow cuts where we round.
    assert np.abs(OPERATIONS[name](IMAGE, amount) - expected).max() <= 2


def test_shifts_move_by_a_fraction_and_pad_with_grey():
    square = np.arange(331 * 331 * 3, dtype=np.uint8).reshape(331, 331, 3)
    right = OPERATIONS['shift_x'](square, 0.5)
    np.testing.assert_array_equal(right[:, 75:], square[:, :-75])
    assert (right[:, :75] == 128).all()
    np.testing.assert_array_equal(OPERATIONS['shift_y'](square, -1.0)[:-150], square[150:])


def test_shear_and_rotation_turn_lines_around_the_centre():
    line = np.zeros((101, 101, 3), np.uint8)
    line[:, 50] = 255
    sheared = OPERATIONS['shear_x'](line, 1.0)
    columns = sheared[..., 0].argmax(1)
    assert columns[50] == 50
    assert columns[90] - columns[10] == pytest.approx(0.3 * 80, abs=1)
    assert OPERATIONS['shear_y'](line, 1.0)[50, 50, 0] == 255
    turned = OPERATIONS['rotate'](line, 1.0)[..., 0].argmax(1)
    assert turned[90] - turned[10] == pytest.approx(-np.tan(np.radians(30)) * 80, abs=1)


@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_keeps_shape_and_type_and_does_nothing_at_zero(name):
    for amount in (-1.0, 1.0):
        changed = OPERATIONS[name](IMAGE, amount)
        assert (changed.shape, changed.dtype) == (IMAGE.shape, np.uint8)
    if name not in ('autocontrast', 'equalize'):
        np.testing.assert_array_equal(OPERATIONS[name](IMAGE, 0.0), IMAGE)
    flat = np.full((20, 20, 3), 77, np.uint8)
    assert OPERATIONS[name](flat, 0.5).shape == flat.shape


def test_rand_augment_depends_on_its_generator_alone():
    def some(seed):
        return augmentation.rand_augment(IMAGE, 2, 9.0, np.random.default_rng(seed))

    np.testing.assert_array_equal(some(3), some(3))
    assert len({some(seed).tobytes() for seed in range(20)}) > 15


def test_erasing_covers_a_rectangle_of_noise_of_the_right_size():
    image, fractions = np.full((100, 100, 3), 7, np.uint8), []
    for seed in range(200):
        erased = augmentation.erase(image, np.random.default_rng(seed))
        rows, columns = np.nonzero((erased != 7).any(2))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if len(rows) else 0
        # Noise is 7 in all three channels once in 16 million pixels.
        assert len(rows) == box
        fractions.append(box / 100**2)
    assert (image == 7).all()
    assert 0.015 < min(fraction for fraction in fractions if fraction) < 0.05
    assert 0.28 < max(fractions) < 0.35


def test_training_images_are_augmented_and_erased_as_the_config_says():
    c = default_config(image_size=64, augment__flip=False, augment__crop='none')

    def prepared(seed, **settings):
        with c.unlocked():
            c.augment.update(settings)
        return images.for_training(IMAGE, c, np.random.default_rng(seed))

    plain = prepared(0)
    changed = [(prepared(seed, randaugment=2) != plain).any() for seed in range(20)]
    assert sum(changed) > 15
    np.testing.assert_array_equal(prepared(0, randaugment=0), plain)
    erased = [(prepared(seed, random_erasing=0.25) != plain).any() for seed in range(200)]
    assert sum(erased) == pytest.approx(50, abs=20)  # 3 standard deviations
