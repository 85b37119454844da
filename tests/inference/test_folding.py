"""Networks whose batch norm is folded compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xception_flax
from xception_flax.inference.folding import fold_batch_norm

SMALL = {'stem': 'small', 'width': 0.125, 'middle_repeats': 1}
# What may stand before batch norm, and how many of them are then not folded: those after a ReLU or
# an ELU.
NETWORKS = {
    'xception': (SMALL, 0),
    'with bn_relu between': ({**SMALL, 'intermediate': 'bn_relu'}, 0),
    'with elu between': ({**SMALL, 'intermediate': 'elu', 'bn_scale': False}, 0),
    'xception41': ({'width': 0.125}, 0),
    'resnet152': ({'stages': (1, 1)}, 0),
    'vgg16': ({'batch_norm': True, 'fc_layers': ()}, 0),
    'inception_v3': ({'stem': 'small', 'width': 0.125}, 0),
    'inception_v3, keras1': ({'stem': 'small', 'width': 0.125, 'variant': 'keras1'}, 94),
    'lenet5': ({}, 0),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_computes_the_same(name):
    options, left = NETWORKS[name]
    registered = name.split(',')[0] if ' between' not in name else 'xception'
    try:
        jax.config.update('jax_enable_x64', True)  # so that only mistakes differ
        model = xception_flax.create_model(registered, 7, dtype=jnp.float64, **options)
        size = max(33, model.min_image_size)
        rng = np.random.default_rng(0)
        x = rng.uniform(-1, 1, (2, size, size, 3))
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        variables = jax.tree.map(lambda a: rng.normal(size=a.shape) / 4, shapes)
        for path, a in jax.tree_util.tree_leaves_with_path(variables):
            if path[-1].key in ('var', 'scale'):
                a[:] = rng.uniform(0.5, 2, a.shape)
        folded = jax.jit(lambda v: fold_batch_norm(model, v, size))(variables)
        assert len(jax.tree.leaves(folded.get('batch_stats', {}))) == 2 * left
        found, expected = (
            jax.jit(lambda v: model.apply(v, x, train=False))(v) for v in (folded, variables)
        )
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
    finally:
        jax.config.update('jax_enable_x64', False)


def test_the_folded_program_has_no_statistics():
    model = xception_flax.create_model('xception', 7, **SMALL)
    x = np.zeros((1, 16, 16, 3), np.float32)
    folded = fold_batch_norm(model, jax.jit(model.init)(jax.random.key(0), x), 16)
    assert not jax.tree.leaves(folded['batch_stats'])
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(folded['params'])}
    assert names == {'kernel', 'folded_bias', 'bias'}  # that of the classifier
