"""Xception: parameters, feature sizes, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_variables

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.models import abstract_variables

SMALL = {'stem': 'small', 'width': 0.125, 'middle_repeats': 0}


def shapes(size=299, num_classes=1000, **options):
    return abstract_variables(xception_flax.create_model('xception', num_classes, **options), size)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ('options', 'trainable', 'statistics'),
    [
        ({}, 22_855_952, 54_528),  # paper, Table 3; Keras
        ({'variant': 'article'}, 22_855_952, 54_528),
        ({'residual': False}, 21_878_880, 54_528 - 2 * (128 + 256 + 728 + 1024)),
        ({'bn_scale': False}, 22_828_688, 54_528),
        ({'intermediate': 'relu'}, 22_855_952, 54_528),
        ({'intermediate': 'elu'}, 22_855_952, 54_528),
        # Two 4096-wide layers: 2048 x 4096 + 4096, 4096 x 4096 + 4096; then 4096 x 1000 weights.
        ({'fc_layers': (4096, 4096)}, 22_855_952 + 8_392_704 + 16_781_312 + 2048 * 1000, 54_528),
    ],
)
def test_parameters_are_counted_as_published(options, trainable, statistics):
    variables = shapes(**options)
    assert count(variables['params']) == trainable
    assert count(variables['batch_stats']) == statistics


def test_heads_for_jft_have_the_parameters_derived_from_the_paper():
    base = count(shapes()['params']) - 2_049_000
    assert count(shapes(num_classes=17_000)['params']) - base == 34_833_000
    with_fc = shapes(num_classes=17_000, fc_layers=(4096, 4096))['params']
    assert count(with_fc) - base == 94_823_016


@pytest.mark.parametrize(
    ('options', 'sizes'),
    [
        ({}, [149, 147, 74, 37, 19, 10, 10]),
        ({'variant': 'article'}, [150, 150, 75, 38, 19, 10, 10]),
        ({'stem': 'small'}, [299, 299, 150, 75, 38, 19, 19]),
    ],
)
def test_features_shrink_as_published(options, sizes):
    model = xception_flax.create_model('xception', **options)
    x = jnp.zeros((1, 299, 299, 3))
    variables = shapes(**options)
    _, state = jax.eval_shape(
        lambda v: model.apply(
            v, x, train=False, capture_intermediates=True, mutable='intermediates'
        ),
        variables,
    )
    seen = state['intermediates']
    entry = seen['entry_flow']
    outputs = [entry[f'conv{i}']['__call__'][0] for i in (1, 2)]
    outputs += [entry[f'block{i}']['__call__'][0][0] for i in (1, 2, 3)]
    outputs += [seen['exit_flow']['block1']['__call__'][0][0], seen['exit_flow']['__call__'][0]]
    assert [output.shape[1] for output in outputs] == sizes
    assert [output.shape[3] for output in outputs] == [32, 64, 128, 256, 728, 1024, 2048]
    assert seen['__call__'][0].shape == (1, 1000)


def test_parameter_paths_read_like_the_architecture():
    params = shapes()['params']
    assert set(params) == {'entry_flow', 'middle_flow', 'exit_flow', 'logits'}
    assert params['middle_flow']['block3']['sepconv2']['depthwise']['kernel'].shape == (
        3,
        3,
        1,
        728,
    )
    assert params['exit_flow']['sepconv4']['pointwise']['kernel'].shape == (1, 1, 1536, 2048)
    assert params['entry_flow']['block1']['shortcut']['conv']['kernel'].shape == (1, 1, 64, 128)


@pytest.mark.parametrize(
    ('name', 'options', 'says'),
    [
        ('xceptoin', {}, "did you mean 'xception'"),
        ('xception', {'residul': False}, "did you mean 'residual'"),
        ('xception', {'variant': 'torch'}, 'variant'),
        ('xception', {'intermediate': 'gelu'}, 'intermediate'),
        ('xception', {'dropout': 1.5}, 'dropout'),
        ('xception', {'width': -1.0}, 'width'),
        ('xception', {'num_classes': 0}, 'num_classes'),
        ('xception', {'fc_layers': (0,)}, 'fc_layers'),
        ('xception', {'bn_epsilon': 0.0}, 'bn_epsilon'),
    ],
)
def test_impossible_options_are_refused_in_one_line(name, options, says):
    with pytest.raises(UserError, match=says) as caught:
        xception_flax.create_model(name, **options)
    assert '\n' not in str(caught.value)


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match='too small'):
        shapes(size=70)


@pytest.mark.slow
@pytest.mark.parametrize(('intermediate', 'residual'), [('relu', True), ('bn_elu', False)])
def test_ablations_train_in_bfloat16(intermediate, residual):
    model = xception_flax.create_model(
        'xception', 5, **SMALL, intermediate=intermediate, residual=residual, dtype=jnp.bfloat16
    )
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)
    variables = random_variables(model, 8)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        logits, updates = model.apply(
            {**variables, 'params': params},
            x,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(2)},
        )
        return jnp.square(logits).mean(), (logits, updates)

    grads, (logits, updates) = gradient(variables['params'])
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves((grads, updates))} == {jnp.dtype('float32')}
    norms = [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(grads)]
    assert np.isfinite(norms).all()
    assert np.mean(np.array(norms) > 0) > 0.9


def test_dropout_acts_in_training_only():
    model = xception_flax.create_model('xception', 5, **SMALL, dropout=0.5, bn_momentum=1.0)
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)
    variables = random_variables(model, 8)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        rngs = {'dropout': jax.random.key(seed)}
        return model.apply(variables, x, train=train, mutable=['batch_stats'], rngs=rngs)[0]

    assert not np.allclose(logits(0, True), logits(1, True))
    np.testing.assert_array_equal(logits(0, True), logits(0, True))
    np.testing.assert_array_equal(logits(0, False), logits(1, False))
