import functools

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.inference import predict, prediction, preprocess
from xception_flax.runtime.errors import UserError

CLASSES = 7


def pictures(count):
    rng = np.random.default_rng(0)
    return [
        cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), (30 + i, 24))
        for i in range(count)
    ]


class Small(nn.Module):
    """A network that is quick to compile, and tells its pictures apart."""

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
def few_at_once(monkeypatch):
    """Several batches of few pictures, the last not full."""
    monkeypatch.setattr(prediction, 'ROWS', 4)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_class(found):
    """Probabilities `[N, C]` of predictions of all classes."""
    rows = np.zeros((len(found), CLASSES))
    for row, one in zip(rows, found, strict=True):
        assert [label.probability for label in one.labels] == sorted(
            (label.probability for label in one.labels), reverse=True
        )
        for label in one.labels:
            row[label.index] = label.probability
    return rows


def test_probabilities_are_the_softmax_of_the_models_logits():
    model, variables, config = network()
    logits = np.asarray(
        model.apply(variables, preprocess(pictures(6), config), train=False), np.float64
    )
    found = by_class(predict(pictures(6), model, variables, config, top=CLASSES))
    # float32; batches of other sizes are summed in another order.
    np.testing.assert_allclose(found, softmax(logits), atol=2e-6)
    assert np.ptp(found, 0).max() > 0.05  # and the pictures are told apart


def test_ten_crops_are_the_mean_of_ten_predictions():
    model, variables, config = network()
    expected = []
    for picture in pictures(3):
        x = preprocess(picture, config, crops=10)
        rows = [model.apply(variables, x[i : i + 1], train=False)[0] for i in range(10)]
        expected.append(np.mean([softmax(np.asarray(row, np.float64)) for row in rows], 0))
    found = predict(pictures(3), model, variables, config, top=CLASSES, crops=10)
    np.testing.assert_allclose(by_class(found), expected, atol=2e-6)


def test_sigmoid_takes_each_class_by_itself():
    model, variables, config = network()
    config = config.copy_and_resolve_references()
    config.loss = 'sigmoid'
    x = preprocess(pictures(2), config)
    logits = np.asarray(model.apply(variables, x, train=False), np.float64)
    found = by_class(predict(pictures(2), model, variables, config, top=CLASSES))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=2e-6)


def test_the_best_labels_are_given_with_their_names():
    model, variables, config = network()
    names = list('abcdefg')
    (whole,) = predict(pictures(1), model, variables, config, top=100, class_names=names)
    (best,) = predict(pictures(1), model, variables, config, top=2, class_names=names)
    assert len(whole.labels) == CLASSES
    assert best.labels == whole.labels[:2]
    assert [label.name for label in best.labels] == [names[label.index] for label in best.labels]
    (nameless,) = predict(pictures(1), model, variables, config)
    assert len(nameless.labels) == 5
    assert nameless.labels[0].name == f'class {whole.labels[0].index}'
    assert nameless.picture == 'picture 0'
    assert predict([], model, variables, config) == []


def test_a_picture_that_cannot_be_read_does_not_end_the_others(tmp_path):
    model, variables, config = network()
    first, second = pictures(2)
    bad = tmp_path / 'bad.jpg'
    bad.write_text('no picture')
    found = list(prediction.predict_each([first, bad, second], model, variables, config))
    assert [one.picture for one in found] == ['picture 0', str(bad), 'picture 2']
    assert found[1] == prediction.Prediction(
        str(bad), (), f'{bad} cannot be read: it is neither JPEG nor PNG'
    )
    (alone,) = predict(second, model, variables, config)
    assert [label.index for label in found[2].labels] == [label.index for label in alone.labels]
    with pytest.raises(UserError, match=r'bad\.jpg cannot be read'):
        predict([first, bad, second], model, variables, config)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'top': 0}, 'top is 0'),
        ({'crops': 5}, 'crops is 5; take one of'),
        ({'class_names': ['a']}, 'there are 1 names for 7 classes'),
    ],
)
def test_arguments_that_make_no_sense_are_told(arguments, says):
    with pytest.raises(UserError, match=says):
        predict(pictures(1), *network(), **arguments)
