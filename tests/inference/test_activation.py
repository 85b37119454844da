"""Class activation maps against their definition, computed here by NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_variables

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.inference import class_activation_maps

SIZE = 40


CLASSES = [0, 3, 4]


@pytest.fixture(scope='module')
def network():
    model = xception_flax.create_model('xception', 5, stem='small', width=0.125, middle_repeats=1)
    x = np.random.default_rng(0).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
    return model, random_variables(model, SIZE), x


@pytest.fixture(scope='module')
def outputs(network):
    """The logits, and the outputs of all modules."""
    model, variables, x = network
    apply = functools.partial(model.apply, capture_intermediates=True, mutable='intermediates')
    logits, state = jax.jit(apply)(variables, x)
    return logits, state['intermediates']


def test_at_the_last_features_it_is_zhous_map(network, outputs):
    model, variables, x = network
    maps = class_activation_maps(model, variables, x, 'exit_flow', CLASSES)
    features = outputs[1]['exit_flow']['__call__'][0]
    weights = variables['params']['logits']['kernel'][:, jnp.array(CLASSES)]
    expected = jnp.einsum('nhwc,cn->nhw', features, weights) / np.prod(features.shape[1:3])
    assert maps.shape == features.shape[:3] == (3, 3, 3)
    assert np.ptp(maps) > 0
    np.testing.assert_allclose(maps, jnp.maximum(expected, 0), rtol=1e-4, atol=1e-6)  # float32


def test_at_a_depthwise_convolution_it_is_grad_cam(network, outputs):
    """The network's end: depthwise, pointwise, batch norm, ReLU, mean over positions, classifier.

    Its gradient by the depthwise features is written down here, without autodiff.
    """
    model, variables, x = network
    logits, seen = outputs
    before = np.maximum(seen['exit_flow']['sepconv3']['__call__'][0], 0)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables['params'])
    last, head = params['exit_flow']['sepconv4'], params['logits']
    stats = variables['batch_stats']['exit_flow']['sepconv4']['bn']

    _, height, width, _ = before.shape
    padded = np.pad(before.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = last['depthwise']['kernel'][:, :, 0]
    features = sum(
        kernel[i, j] * padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    )
    multiplier = last['bn']['scale'] / np.sqrt(np.asarray(stats['var'], np.float64) + 1e-3)
    pointwise = last['pointwise']['kernel'][0, 0] * multiplier
    sums = features @ pointwise + last['bn']['bias'] - np.asarray(stats['mean']) * multiplier
    found = np.maximum(sums, 0).mean((1, 2)) @ head['kernel'] + head['bias']
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-6)  # it is the same network

    by_sums = (sums > 0) * head['kernel'].T[CLASSES][:, None, None] / (height * width)
    weights = (by_sums @ pointwise.T).mean((1, 2), keepdims=True)
    expected = np.maximum((weights * features).sum(-1), 0)
    maps = class_activation_maps(model, variables, x, 'exit_flow/sepconv4/depthwise', CLASSES)
    assert maps.shape == (3, height, width)
    assert np.ptp(expected, (1, 2)).all()
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6 * expected.max())


@pytest.mark.parametrize(
    'at',
    [
        'entry_flow/block1',
        pytest.param('middle_flow/block1', marks=pytest.mark.slow),
        pytest.param('entry_flow', marks=pytest.mark.slow),
    ],
)
def test_the_most_probable_class_is_the_default(network, outputs, at):
    best = np.argmax(outputs[0], -1)
    found = class_activation_maps(*network, at)
    assert found.ndim == 3
    np.testing.assert_array_equal(found, class_activation_maps(*network, at, best))


def test_a_module_without_features_is_refused(network):
    with pytest.raises(UserError, match="Xception has no features at 'mixed3'"):
        class_activation_maps(*network, 'mixed3')
    with pytest.raises(UserError, match="no features at 'logits'"):
        class_activation_maps(*network, 'logits')
