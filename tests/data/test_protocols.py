"""Each protocol makes of an image what the program does that it is named after."""

import base64
import json
import pathlib

import numpy as np
import pytest
from boxes import covering, features
from helpers import default_config
from photographs import photographs
from scipy import stats

from xception_flax.data import augmentation, images, protocols

REFERENCE = json.loads((pathlib.Path(__file__).parent / 'preprocessing_reference.json').read_text())
PHOTOGRAPHS = photographs()
SHAPES = [(375, 500), (100, 900), (30, 20)]
DRAWS = 20_000


@pytest.fixture(scope='module')
def tf():
    return pytest.importorskip('tensorflow')


def draw(crop, shape, area, aspect):
    rng = np.random.default_rng(0)
    return np.array([crop(*shape, area, aspect, rng) for _ in range(DRAWS)])


def inside(boxes, shape):
    top, left, height, width = boxes.T
    return (
        (boxes >= 0).all() and (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    )


# TensorFlow itself.


@pytest.mark.parametrize('photograph', PHOTOGRAPHS)
@pytest.mark.parametrize(('size', 'fraction'), [(299, 0.875), (224, 0.5), (150, 1.0)])
@pytest.mark.parametrize('by_opencv', [True, False])
def test_inception_evaluates_as_tensorflow(tf, monkeypatch, photograph, size, fraction, by_opencv):
    if by_opencv and not protocols.EXACT_WARP:
        pytest.skip('this OpenCV rounds positions')
    monkeypatch.setattr(protocols, 'EXACT_WARP', by_opencv)
    image = PHOTOGRAPHS[photograph]
    whole = tf.image.convert_image_dtype(image, tf.float32)
    centre = tf.image.central_crop(whole, fraction) if fraction < 1 else whole
    expected = tf.compat.v1.image.resize_bilinear(centre[None], [size, size])[0] * 255
    c = default_config(protocol='inception', crop_fraction=fraction, image_size=size)
    # Ours is rounded to whole numbers.
    np.testing.assert_allclose(images.for_evaluation(image, c), expected, atol=0.501, rtol=0)


@pytest.mark.parametrize('shape', SHAPES)
def test_inception_crops_as_tensorflow(tf, shape):
    settings = protocols.PROTOCOLS['inception'].defaults
    area, aspect = settings['augment.area'], settings['augment.aspect']

    @tf.function
    def crops():
        def one(_):
            begin, size, _ = tf.image.sample_distorted_bounding_box(
                [*shape, 3], tf.zeros([1, 0, 4]), seed=1, min_object_covered=0.1,
                aspect_ratio_range=aspect, area_range=area, max_attempts=100,
                use_image_if_no_bounding_boxes=True,
            )  # fmt: skip
            return tf.concat([begin[:2], size[:2]], 0)

        return tf.map_fn(one, tf.range(DRAWS), fn_output_signature=tf.int32)

    ours = draw(protocols.tensorflow_crop, shape, area, aspect)
    theirs = crops().numpy()
    assert inside(ours, shape)
    other = draw(protocols.uniform_crop, shape, area, aspect)
    ours, theirs, other = (features(boxes, shape) for boxes in (ours, theirs, other))
    for name, expected in theirs.items():
        # With equal distributions a larger distance has a probability of 1e-6.
        assert stats.ks_2samp(ours[name], expected).statistic < 0.027, name
    assert ours['area'].min() >= 0.1
    assert stats.ks_2samp(other['area'], theirs['area']).statistic > 0.05


@pytest.mark.parametrize('brighter', [-0.1, 0.0, 0.1])
def test_colours_change_as_in_tensorflow(tf, brighter):
    # Beyond black and white, too, as after a change of brightness.
    x = PHOTOGRAPHS['101x89'].astype(np.float32) / 255 + brighter
    for factor in (0.0, 0.5, 1.0, 1.5, 3.0):
        expected = tf.image.adjust_saturation(x, factor) * 255
        np.testing.assert_allclose(images.saturate(x * 255, factor), expected, atol=0.01, rtol=0)
    inside = np.clip(x, 0, 1)
    for turns in (-0.5, -0.2, 0.0, 0.1, 0.4):
        expected = tf.image.adjust_hue(inside, turns) * 255
        np.testing.assert_allclose(
            images.turn_hue(inside * 255, turns), expected, atol=0.01, rtol=0
        )


def test_training_images_have_the_colours_of_inceptions_fast_mode(tf):
    c = default_config(protocol='inception', image_size=89)
    c.augment.crop, c.augment.flip = 'none', False
    image = images.for_evaluation(
        PHOTOGRAPHS['101x89'],
        default_config(protocol='inception', crop_fraction=1.0, image_size=89),
    )
    found = images.for_training(PHOTOGRAPHS['101x89'], c, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    x = tf.image.convert_image_dtype(image, tf.float32)
    x = tf.image.adjust_brightness(x, rng.uniform(-32 / 255, 32 / 255))
    x = tf.image.adjust_saturation(x, rng.uniform(0.5, 1.5))
    expected = np.clip(x, 0, 1) * 255
    assert np.abs(expected - image).max() > 10
    np.testing.assert_allclose(found, expected, atol=0.51, rtol=0)


# Records of timm and torchvision: experiments/parity/preprocessing_reference.py.


@pytest.mark.parametrize(
    'case', REFERENCE['evaluations'], ids=lambda case: '-'.join(map(str, case[:-1]))
)
def test_evaluates_as_recorded(case):
    protocol, size, fraction, interpolation, photograph, encoded = case
    c = default_config(
        protocol=protocol, crop_fraction=fraction, image_size=size, interpolation=interpolation
    )
    every = REFERENCE['every']
    found = images.for_evaluation(PHOTOGRAPHS[photograph], c)[::every, ::every]
    expected = np.frombuffer(base64.b85decode(encoded), np.uint8).reshape(found.shape)
    np.testing.assert_allclose(found.astype(int), expected, atol=1, rtol=0)


@pytest.mark.parametrize('case', REFERENCE['crops'], ids=lambda case: '-'.join(case[:2]))
def test_crops_as_recorded(case):
    protocol, name, expected = case
    shape = tuple(map(int, name.split('x')))
    defaults = protocols.PROTOCOLS[protocol].defaults
    boxes = draw(
        protocols.PROTOCOLS[protocol].crop, shape, defaults['augment.area'],
        defaults['augment.aspect'],
    )  # fmt: skip
    check(boxes, shape, expected)


@pytest.mark.parametrize('case', REFERENCE['erasing'], ids=lambda case: case[0])
def test_erases_as_recorded(case):
    name, expected = case
    shape = tuple(map(int, name.split('x')))
    image, rng = np.zeros((*shape, 3), np.uint8), np.random.default_rng(0)
    # Noise is black in all three channels once in 16 million pixels.
    boxes = [covering(augmentation.erase(image, rng).any(2)) for _ in range(DRAWS)]
    check(np.array(boxes), shape, expected)


def check(boxes, shape, expected):
    """Compares boxes with recorded distributions."""
    assert inside(boxes, shape)
    values = features(boxes, shape)
    for key, distribution in expected.items():
        for at, part in distribution:
            # Both parts are uncertain by 0.004 at most; this is five times that of the difference.
            assert (values[key] <= at).mean() == pytest.approx(part, abs=0.025), (key, at)


# Our own.


def test_opencvs_crops_have_the_areas_and_aspects_asked_for():
    boxes = draw(protocols.uniform_crop, (375, 500), (0.05, 1.0), (3 / 4, 4 / 3))
    assert inside(boxes, (375, 500))
    height, width = boxes.T[2:]
    whole = (height == 375) & (width == 500)
    assert whole.mean() < 0.01  # the ten draws nearly always find one
    area, aspect = (height * width / (375 * 500))[~whole], (width / height)[~whole]
    assert area.min() < 0.07
    assert area.max() > 0.9
    # A side is rounded by half a pixel, of at least 83.
    assert 0.75 - 0.02 < aspect.min() < 0.77
    assert 1.31 < aspect.max() < 4 / 3 + 0.02


@pytest.mark.parametrize('protocol', protocols.PROTOCOLS)
def test_a_crop_that_cannot_fit_is_the_whole_image_or_its_middle(protocol):
    rng = np.random.default_rng(0)
    box = protocols.PROTOCOLS[protocol].crop(10, 10, (1.0, 1.0), (3.0, 3.0), rng)
    middle = (3, 0, 3, 10) if protocol in ('timm', 'torchvision') else (0, 0, 10, 10)
    assert box == middle


@pytest.mark.parametrize('protocol', protocols.PROTOCOLS)
def test_every_interpolation_keeps_a_gradient(protocol):
    y, x = np.mgrid[0:60, 0:60]
    image = np.stack([255 * x / 59, 255 * y / 59, 128 + 0 * x], -1).round().astype(np.uint8)
    for interpolation in protocols.PROTOCOLS[protocol].interpolations:
        c = default_config(
            protocol=protocol, interpolation=interpolation, crop_fraction=1.0, image_size=20
        )
        found = images.for_evaluation(image, c)
        assert np.abs(found.astype(int) - image[1::3, 1::3]).max() < 16


@pytest.mark.parametrize('protocol', protocols.PROTOCOLS)
@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (300, 2), (21, 300), (20, 20)])
def test_every_shape_gives_the_size_asked_for(protocol, shape):
    image = np.full((*shape, 3), 100, np.uint8)
    c = default_config(protocol=protocol, image_size=20)
    assert images.for_evaluation(image, c).shape == (20, 20, 3)
    found = images.for_training(image, c, np.random.default_rng(0))
    assert (found.shape, found.dtype) == ((20, 20, 3), np.uint8)
