"""Inception V3: what it has and other networks do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xception_flax
from xception_flax.models import abstract_variables


def test_features_shrink_as_published():
    model = xception_flax.create_model('inception_v3')
    x = jnp.zeros((1, 299, 299, 3))
    variables = abstract_variables(model, 299)
    _, state = jax.eval_shape(
        lambda v: model.apply(
            v, x, train=False, capture_intermediates=True, mutable='intermediates'
        ),
        variables,
    )
    seen = {name: value for name, value in state['intermediates'].items() if name != '__call__'}
    shapes = {name: value['__call__'][0].shape[1:] for name, value in seen.items()}
    convolutions = [seen[f'conv{i}']['conv']['__call__'][0].shape[1] for i in range(1, 6)]
    assert convolutions == [149, 147, 147, 73, 71]
    assert [shapes[f'mixed{i}'][0] for i in range(11)] == [35] * 3 + [17] * 5 + [8] * 3
    channels = [shapes[f'mixed{i}'][2] for i in range(11)]
    assert channels == [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]


def test_the_auxiliary_classifier_is_used_in_training_only():
    model = xception_flax.create_model('inception_v3', 5, auxiliary=True, dropout=0.0)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 139, 139, 3)).astype(np.float32)
    init = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    _, training = jax.eval_shape(
        lambda v: model.apply(v, x, train=True, mutable=['batch_stats', 'auxiliary']), init
    )
    (logits,) = jax.tree.leaves(training['auxiliary'])
    assert logits.shape == (2, 5)
    _, inference = jax.eval_shape(
        lambda v: model.apply(v, x, train=False, mutable=['batch_stats', 'auxiliary']), init
    )
    assert not jax.tree.leaves(inference.get('auxiliary', {}))


@pytest.mark.parametrize('size', [8, 28, 33])
def test_for_small_images_features_have_the_sizes_of_xceptions(size):
    def sides(name):
        model = xception_flax.create_model(name, 10, stem='small', width=0.125)
        x = jnp.zeros((1, size, size, 3))
        ends, _ = jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), x, features_only=True)
        )
        return sorted((end.shape[1] for end in ends.values()), reverse=True)

    expected = [size]
    for _ in range(4):
        expected.append(-(-expected[-1] // 2))
    assert sides('inception_v3') == sides('xception') == expected
