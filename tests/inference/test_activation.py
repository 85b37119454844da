import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xception_flax
from xception_flax.inference import class_activation_maps
from xception_flax.runtime.errors import UserError

SIZE = 40


@pytest.fixture(scope='module')
def network():
    model = xception_flax.create_model(
        'xception', 5, stem='small', width=0.125, middle_repeats=1
    )  # fmt: skip
    x = np.random.default_rng(0).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_at_the_last_features_it_is_zhous_map(network):
    model, variables, x = network
    classes = [0, 3, 4]
    maps = class_activation_maps(model, variables, x, 'exit_flow', classes)
    features = list(model.apply(variables, x, features_only=True).values())[-1]
    weights = variables['params']['logits']['kernel'][:, jnp.array(classes)]
    expected = jnp.einsum('nhwc,cn->nhw', features, weights) / np.prod(features.shape[1:3])
    assert maps.shape == features.shape[:3] == (3, 3, 3)
    assert np.ptp(maps) > 0
    np.testing.assert_allclose(maps, jnp.maximum(expected, 0), rtol=1e-4, atol=1e-6)  # float32


def test_the_most_probable_class_is_the_default(network):
    model, variables, x = network
    best = np.argmax(model.apply(variables, x), -1)
    for at in ('entry_flow/block1', 'middle_flow/block1', 'entry_flow'):
        found = class_activation_maps(model, variables, x, at)
        np.testing.assert_array_equal(found, class_activation_maps(model, variables, x, at, best))
        assert found.ndim == 3


def test_a_place_that_is_not_there_is_told(network):
    with pytest.raises(UserError, match="Xception has no features at 'mixed3'"):
        class_activation_maps(*network, 'mixed3')
    with pytest.raises(UserError, match="no features at 'logits'"):
        class_activation_maps(*network, 'logits')
    with pytest.raises(UserError, match="'exit_flow/sepconv4/depthwise' gives: with a pointwise"):
        class_activation_maps(*network, 'exit_flow/sepconv4/depthwise')
