import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xception_flax
from xception_flax.models import layers
from xception_flax.runtime.errors import UserError

SMALL = {'stem': 'small', 'width': 0.125, 'middle_repeats': 0}


def shapes(size=299, num_classes=1000, **options):
    model = xception_flax.create_model('xception', num_classes, **options)
    x = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


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


def test_jft_heads_are_as_large_as_derived_from_the_paper():
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


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match='too small'):
        shapes(size=70)


@pytest.mark.parametrize(
    ('intermediate', 'residual'),
    [('relu', True), ('bn_elu', False)],
)
def test_ablations_train_in_bfloat16(intermediate, residual):
    model = xception_flax.create_model(
        'xception', 5, **SMALL, intermediate=intermediate, residual=residual, dtype=jnp.bfloat16
    )
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)

    @jax.jit
    def gradient():
        variables = model.init(jax.random.key(0), x, train=False)

        def loss(params):
            logits, updates = model.apply(
                {**variables, 'params': params},
                x,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(2)},
            )
            return jnp.square(logits).mean(), (logits, updates)

        return jax.grad(loss, has_aux=True)(variables['params'])

    grads, (logits, updates) = gradient()
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves((grads, updates))} == {jnp.dtype('float32')}
    norms = [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(grads)]
    assert np.isfinite(norms).all()
    assert np.mean(np.array(norms) > 0) > 0.9


def test_dropout_acts_in_training_only():
    model = xception_flax.create_model('xception', 5, **SMALL, dropout=0.5, bn_momentum=1.0)
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()

    @jax.jit
    def logits(seed):
        return model.apply(
            variables,
            x,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(seed)},
        )[0]

    assert not np.allclose(logits(0), logits(1))
    np.testing.assert_array_equal(logits(0), logits(0))
    once, twice = (model.apply(variables, x, train=False) for _ in range(2))
    np.testing.assert_array_equal(once, twice)


class TestBatchNorm:
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 4)) * 3 + 1

    def run(self, x, group_size):
        norm = layers.BatchNorm(momentum=0.9, group_size=group_size)
        variables = norm.init(jax.random.key(0), x, train=False)
        y, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
        return y, updates['batch_stats']

    def test_one_group_is_the_whole_batch(self):
        y, stats = self.run(self.x, 0)
        mean, var = self.x.mean((0, 1, 2)), self.x.var((0, 1, 2))
        np.testing.assert_allclose(y, (self.x - mean) / np.sqrt(var + 1e-3), atol=2e-6)
        np.testing.assert_allclose(stats['mean'], 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * var, rtol=1e-5)

    def test_groups_are_normalised_apart_and_averaged_in_the_running_statistics(self):
        y, stats = self.run(self.x, 2)
        parts = [self.run(self.x[i : i + 2], 0) for i in range(0, 8, 2)]
        np.testing.assert_allclose(y, np.concatenate([part[0] for part in parts]), atol=2e-6)
        for name in ('mean', 'var'):
            mean = np.mean([part[1][name] for part in parts], 0)
            np.testing.assert_allclose(stats[name], mean, rtol=1e-5)

    def test_a_group_that_does_not_divide_the_batch_is_refused(self):
        with pytest.raises(ValueError, match='groups of 3'):
            self.run(self.x, 3)
