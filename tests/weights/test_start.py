"""Weights that a run starts from, `config.init.weights`."""

import functools

import jax
import keras
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers import default_config, random_variables, small_config

from xception_flax.base.errors import UserError
from xception_flax.models import abstract_variables, build_model
from xception_flax.training.state import create_state
from xception_flax.weights import Trained, start


def network(num_classes, **settings):
    c = small_config(**settings)
    return build_model(c, num_classes), c


@functools.cache
def shapes(num_classes, **settings):
    model, c = network(num_classes, **settings)
    return abstract_variables(model, c.image_size)


@pytest.fixture
def trained(monkeypatch):
    """'W': random weights of a network for 4 classes with one fully connected layer."""
    model, c = network(4, xception__fc_layers=(8,), xception__dropout=0.1)
    net = Trained(model, random_variables(model, c.image_size), c)
    monkeypatch.setattr(start, 'load', lambda path, new_head: {'W': net}[path])
    return net.variables


def test_a_file_without_a_classifier_is_a_start(tmp_path):
    file = tmp_path / 'trunk.weights.h5'
    theirs = keras.applications.Xception(weights=None, include_top=False)
    theirs.save_weights(file)
    c = default_config(init__weights=str(file), image_size=71)
    model = build_model(c, 1000)  # as many as a published classifier has
    loaded, report = start.fit_start(start.read_start(c), c, abstract_variables(model, 71))
    assert report == f'starting from {file}; randomly initialised: logits'
    assert loaded['params']['logits'] == {'kernel': None, 'bias': None}
    kernel = loaded['params']['entry_flow']['conv1']['conv']['kernel']
    np.testing.assert_array_equal(kernel, theirs.get_layer('block1_conv1').kernel)


def load(num_classes, **settings):
    """The variables by path, and the report."""
    c = small_config(init__weights='W', **settings)
    loaded, report = start.fit_start(start.read_start(c), c, shapes(num_classes, **settings))
    return flatten_dict(loaded, sep='/'), report


@pytest.mark.parametrize(
    ('num_classes', 'settings', 'initialised'),
    [
        (4, {'xception__fc_layers': (8,)}, ()),
        (4, {'xception__fc_layers': (8,), 'init__new_head': True}, ('logits',)),
        (5, {'xception__fc_layers': (8,)}, ('logits',)),
        (5, {'xception__fc_layers': (6,)}, ('fc1', 'logits')),
        (4, {'xception__fc_layers': (8, 8)}, ('fc2',)),
        (4, {}, ('logits',)),  # its input is the features, which have another size than fc1
    ],
)
def test_all_is_loaded_except_layers_of_the_head_that_do_not_fit(
    trained, num_classes, settings, initialised
):
    found, report = load(num_classes, **settings)
    assert set(found) == set(flatten_dict(shapes(num_classes, **settings), sep='/'))
    for key, value in flatten_dict(trained, sep='/').items():
        if key in found and not any(f'/{layer}/' in key for layer in initialised):
            np.testing.assert_array_equal(found[key], value)
    missing = {key.split('/')[1] for key, value in found.items() if value is None}
    assert missing == set(initialised)
    expected = f'; randomly initialised: {", ".join(initialised)}' if initialised else ''
    assert report == f'starting from W{expected}'


def test_weights_statistics_and_averages_of_a_state_start_there(trained):
    c = small_config(xception__fc_layers=(8,), init__weights='W', init__new_head=True)
    model, wanted = build_model(c, 4), shapes(4, xception__fc_layers=(8,))
    loaded, _ = start.fit_start(start.read_start(c), c, wanted)
    create = functools.partial(create_state, model, optax.sgd(0.1), 16, True)
    state = jax.jit(create)(jax.random.key(0), loaded=loaded)
    new = state.params['logits']
    limit = (6 / (8 + 4)) ** 0.5  # Glorot's
    assert 0.5 * limit < np.abs(new['kernel']).max() < limit
    assert not np.any(new['bias'])
    expected = {**trained, 'params': {**trained['params'], 'logits': new}}
    jax.tree.map(np.testing.assert_array_equal, state.variables('live'), expected)
    jax.tree.map(np.testing.assert_array_equal, state.variables('averaged'), expected)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        (
            {'model': 'resnet152', 'image_size': 32},
            r'another network .* --config.model=xception$',
        ),
        ({'preprocessing': 'torch'}, r'give --config.preprocessing=tf$'),
        ({'xception__stem': 'imagenet', 'image_size': 71}, r'give --config.xception.stem=small$'),
        (
            {'xception__width': 0.25, 'xception__residual': False},
            r'give --config.xception.residual=True --config.xception.width=0.05$',
        ),
    ],
)
def test_the_error_about_weights_of_another_network_says_what_to_give(trained, settings, says):
    with pytest.raises(UserError, match=says) as caught:
        load(4, **settings)
    assert '\n' not in str(caught.value)


def test_arrays_that_do_not_fit_are_named(trained):
    conv = trained['params']['entry_flow']['conv1']['conv']
    conv['kernel'] = np.zeros((5, 5, 3, 8))
    del trained['batch_stats']['exit_flow']['sepconv4']['bn']['mean']
    with pytest.raises(UserError, match='2 of its arrays differ') as caught:
        load(4, xception__fc_layers=(8,))
    message = str(caught.value)
    assert 'params/entry_flow/conv1/conv/kernel (5, 5, 3, 8) instead of (3, 3, 3, 8)' in message
    assert 'batch_stats/exit_flow/sepconv4/bn/mean missing instead of (104,)' in message
