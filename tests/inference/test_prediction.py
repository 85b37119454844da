"""Probabilities of images: those of the network's logits, in batches, with names."""

import functools

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.base.errors import UserError
from xception_flax.inference import prediction, preprocess

CLASSES = 7


def images(count):
    rng = np.random.default_rng(0)
    return [
        cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), (30 + i, 24))
        for i in range(count)
    ]


class Small(nn.Module):
    """A network that compiles quickly and gives different images different logits."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3), 2)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


@functools.cache
def network():
    config = configs.default()
    config.image_size = 16
    model = Small(CLASSES)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)), train=False)
    return model, variables, config


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Makes several batches of few images, the last not full."""
    monkeypatch.setattr(prediction, 'ROWS', 4)


def predict(images, model, variables, config, **options):
    return list(prediction.predict_each(images, model, variables, config, **options))


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_class(found):
    """Probabilities `[N, C]` of predictions with all classes; the labels have to be in order."""
    rows = np.zeros((len(found), CLASSES))
    for row, one in zip(rows, found, strict=True):
        probabilities = [label.probability for label in one.labels]
        assert probabilities == sorted(probabilities, reverse=True)
        for label in one.labels:
            row[label.index] = label.probability
    return rows


def test_probabilities_are_the_softmax_of_the_models_logits():
    model, variables, config = network()
    logits = np.asarray(
        model.apply(variables, preprocess(images(6), config), train=False), np.float64
    )
    found = by_class(predict(images(6), model, variables, config, top=CLASSES))
    # float32; batches of different sizes are summed in a different order.
    np.testing.assert_allclose(found, softmax(logits), atol=2e-6)
    assert np.ptp(found, 0).max() > 0.05  # different images, different probabilities


def test_ten_crops_are_the_mean_of_ten_predictions():
    model, variables, config = network()
    expected = []
    for image in images(3):
        x = preprocess(image, config, crops=10)
        rows = [model.apply(variables, x[i : i + 1], train=False)[0] for i in range(10)]
        expected.append(np.mean([softmax(np.asarray(row, np.float64)) for row in rows], 0))
    found = predict(images(3), model, variables, config, top=CLASSES, crops=10)
    np.testing.assert_allclose(by_class(found), expected, atol=2e-6)


def test_with_sigmoid_loss_each_class_has_its_own_probability():
    model, variables, config = network()
    config = config.copy_and_resolve_references()
    config.loss = 'sigmoid'
    x = preprocess(images(2), config)
    logits = np.asarray(model.apply(variables, x, train=False), np.float64)
    found = by_class(predict(images(2), model, variables, config, top=CLASSES))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=2e-6)


def test_the_most_probable_labels_have_their_names():
    model, variables, config = network()
    names = list('abcdefg')
    (whole,) = predict(images(1), model, variables, config, top=100, class_names=names)
    (best,) = predict(images(1), model, variables, config, top=2, class_names=names)
    assert len(whole.labels) == CLASSES
    assert best.labels == whole.labels[:2]
    assert [label.name for label in best.labels] == [names[label.index] for label in best.labels]
    (nameless,) = predict(images(1), model, variables, config)
    assert len(nameless.labels) == 5
    assert nameless.labels[0].name == f'class {whole.labels[0].index}'
    assert nameless.image == 'image 0'
    assert predict([], model, variables, config) == []


def test_an_unreadable_image_does_not_end_the_others(tmp_path):
    model, variables, config = network()
    first, second = images(2)
    bad = tmp_path / 'bad.jpg'
    bad.write_text('no image')
    found = predict([first, bad, second], model, variables, config)
    assert [one.image for one in found] == ['image 0', str(bad), 'image 2']
    assert found[1] == prediction.Prediction(
        str(bad), (), f'{bad} cannot be read: it is no JPEG, PNG, WebP, BMP, GIF or TIFF'
    )
    (alone,) = predict(second, model, variables, config)
    assert [label.index for label in found[2].labels] == [label.index for label in alone.labels]


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'top': 0}, 'top is 0'),
        ({'crops': 5}, 'crops is 5; take one of'),
        ({'class_names': ['a']}, 'there are 1 names for 7 classes'),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        predict(images(1), *network(), **arguments)
