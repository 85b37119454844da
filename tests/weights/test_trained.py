"""A trained network as one value: predictions, features, saving, plain data."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import random_variables, small_config

import xception_flax
from xception_flax import Trained, UserError
from xception_flax.inference import preprocess
from xception_flax.models import build_model, end_points

CLASSES = ('cat', 'dog', 'eel')


@pytest.fixture(scope='module')
def net():
    """A small Xception with random weights."""
    config = small_config()
    model = build_model(config, len(CLASSES))
    return Trained(model, random_variables(model, config.image_size), config, CLASSES)


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64 * (i + 1), (20, 24, 3), np.uint8) for i in range(4)]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def logits(net, images):
    """The network is plain data: its logits take one line."""
    return jax.jit(net.model.apply)(net.variables, preprocess(images, net.config))


def test_predictions_are_the_softmax_of_the_logits(net, images, logits):
    found = net.predict(images)
    assert [len(one.labels) for one in found] == [3] * 4  # fewer classes than the default of 5
    assert {label.name for label in found[0].labels} == set(CLASSES)
    probabilities = np.zeros((4, 3))
    for row, one in zip(probabilities, found, strict=True):
        for label in one.labels:
            assert label.name == CLASSES[label.index]
            row[label.index] = label.probability
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)  # float32
    assert np.ptp(probabilities, 0).max() > 1e-3  # different images, different probabilities


def test_top_and_crops_of_a_prediction(net, images):
    (best,) = net.predict(images[0], top=1)
    (whole,) = net.predict(images[0])
    assert best.labels == whole.labels[:1]
    (averaged,) = net.predict(images[0], crops=10)
    assert averaged.labels != whole.labels


def test_an_unreadable_image_is_an_error_or_a_prediction_with_one(net, images, tmp_path):
    bad = tmp_path / 'bad.jpg'
    bad.write_text('no image')
    with pytest.raises(UserError, match=r'bad\.jpg cannot be read'):
        net.predict([images[0], bad, images[1]])
    found = list(net.predict_each([images[0], bad, images[1]]))
    assert [bool(one.error) for one in found] == [False, True, False]
    assert [len(one.labels) for one in found] == [3, 0, 3]


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [({'top': 0}, 'top is 0'), ({'crops': 5}, 'crops is 5; take one of')],
)
def test_arguments_out_of_range_are_refused(net, images, arguments, says):
    with pytest.raises(UserError, match=says):
        net.predict(images, **arguments)


def test_features_are_those_of_the_model_finest_first(net, images):
    found = net.features(images)
    apply = functools.partial(net.model.apply, train=False, features_only=True)
    expected = jax.jit(apply)(net.variables, preprocess(images, net.config))
    ends = end_points(net.model)
    assert list(found) == list(ends)
    for name, (stride, channels) in ends.items():
        side = net.config.image_size // stride
        assert found[name].shape == (4, side, side, channels)
    same(found, expected)


def test_the_folder_of_a_run_keeps_everything(net, tmp_path):
    net.save(tmp_path / 'run')
    loaded = xception_flax.load(tmp_path / 'run')
    assert loaded.model == net.model
    assert loaded.class_names == CLASSES
    same(loaded.variables, net.variables)
    assert loaded.config.xception == net.config.xception
    assert loaded.config.image_size == net.config.image_size
    assert loaded.config.dataset.num_classes == len(CLASSES)
    with pytest.raises(UserError, match='exists already'):
        net.save(tmp_path / 'run')


@pytest.mark.parametrize('names', [None, ()])
def test_unknown_and_missing_class_names_stay_so(net, names, tmp_path):
    dataclasses.replace(net, class_names=names).save(tmp_path / 'run')
    assert xception_flax.load(tmp_path / 'run').class_names == names


def test_it_is_a_frozen_value(net):
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.variables = {}
    fields = [field.name for field in dataclasses.fields(net)]
    assert fields == ['model', 'variables', 'config', 'class_names', 'measured']
    changed = dataclasses.replace(net, class_names=None)
    assert (changed.model, changed.class_names) == (net.model, None)
    assert net.class_names == CLASSES


def test_its_logits_have_a_row_per_image(logits):
    assert (logits.shape, logits.dtype) == ((4, 3), np.float32)
