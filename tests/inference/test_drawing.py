"""Drawings of images with their labels."""

import numpy as np
import pytest

from xception_flax.base.errors import UserError
from xception_flax.inference import Label, Prediction
from xception_flax.inference.drawing import draw

RED, GREEN = ((220, 30, 40), (30, 200, 60))
BAR = 0.4 * np.array([0x1F, 0x6F, 0xB2]) + 0.6 * np.array([0xF1, 0xF4, 0xF7])


def plain(colour, height=50, width=80):
    return np.full((height, width, 3), colour, np.uint8)


def prediction(*probabilities, name='some $_$ name'):
    labels = [Label(i, f'{name} {i}', p) for i, p in enumerate(probabilities)]
    return Prediction('some.png', tuple(labels))


def pixels(figure):
    """The pixels of the figure as it is saved, `[H, W, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def count(image, colour):
    """Number of pixels of a colour, up to rounding."""
    return int((np.abs(image.astype(int) - np.rint(colour)).max(-1) <= 1).sum())


def test_bars_below_an_image_are_as_long_as_its_probabilities():
    image = pixels(draw(plain(RED), [prediction(0.6, 0.3)]))
    _, width, _ = image.shape
    assert width == round(3.4 * 120)
    rows, columns = np.nonzero((image == RED).all(-1))
    seen = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert seen[0] > 0.85 * width
    assert seen[0] / seen[1] == pytest.approx(80 / 50, rel=0.02)
    rows_of_bars = np.nonzero((np.abs(image - BAR) <= 1).all(-1).any(1))[0]
    assert rows_of_bars.min() > rows.max()
    # Text covers part of the bars.
    lengths = [count(image[r : r + 1], BAR) for r in range(rows_of_bars.min(), image.shape[0])]
    assert max(lengths) == pytest.approx(0.6 * seen[0], abs=3)
    bars = [count(image, BAR), count(pixels(draw(plain(RED), [prediction(0.3, 0.3)])), BAR)]
    assert bars[0] > 1.4 * bars[1]


def test_several_images_are_in_a_grid():
    one = pixels(draw([plain(RED)], [prediction(0.5)]))
    three = pixels(draw([plain(RED), plain(GREEN), plain(RED)], [prediction(0.5)] * 3))
    assert three.shape == (2 * one.shape[0], 2 * one.shape[1], 3)
    height, width, _ = one.shape
    quarters = [three[:height, :width], three[:height, width:], three[height:, :width]]
    for quarter, colour in zip(quarters, (RED, GREEN, RED), strict=True):
        assert count(quarter, colour) > 0.3 * height * width
    assert (three[height:, width:] == 255).all()


def test_a_large_image_is_drawn_like_a_small_one():
    small, large = (pixels(draw(plain(RED, 5 * n, 8 * n), [prediction(0.5)])) for n in (10, 400))
    assert count(large, RED) == pytest.approx(count(small, RED), rel=0.01)


def test_an_unreadable_image_is_an_error():
    with pytest.raises(UserError, match='image 0 cannot be read'):
        draw(b'no image', [prediction(0.5)])
