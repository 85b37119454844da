"""Networks compute the same after their batch norm is folded into the convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xception_flax
from xception_flax.inference.folding import fold_batch_norm

SMALL = {'stem': 'small', 'width': 0.125, 'middle_repeats': 1}
# The network, its options, and the number of batch norms that are not folded: an activation is
# between them and the convolution.
NETWORKS = {
    'xception': ('xception', SMALL, 0),
    'bn_relu between': ('xception', {**SMALL, 'intermediate': 'bn_relu'}, 0),
    'elu between': ('xception', {**SMALL, 'intermediate': 'elu', 'bn_scale': False}, 0),
    'xception41': ('xception41', {'width': 0.125, 'middle_repeats': 0}, 0),
    'resnet': ('resnet152', {'stages': (1, 1)}, 0),
    'vgg16': ('vgg16', {'batch_norm': True, 'fc_layers': ()}, 0),
    'keras1': ('inception_v3', {'stem': 'small', 'width': 0.125, 'variant': 'keras1'}, 94),
    'inception_v3': ('inception_v3', {'stem': 'small', 'width': 0.125}, 0),
    'lenet5': ('lenet5', {}, 0),
}


SLOW = ('bn_relu between', 'elu between', 'inception_v3')  # more cases of a network


@pytest.mark.parametrize(
    ('name', 'options', 'left'),
    [
        pytest.param(*case, id=key, marks=[pytest.mark.slow] if key in SLOW else [])
        for key, case in NETWORKS.items()
    ],
)
def test_the_folded_network_computes_the_same(name, options, left, float64):
    model = xception_flax.create_model(name, 7, dtype=jnp.float64, **options)
    size = max(33, model.min_image_size)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, size, size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape) / 4, shapes)
    for path, a in jax.tree_util.tree_leaves_with_path(variables):
        if path[-1].key in ('var', 'scale'):
            a[:] = rng.uniform(0.5, 2, a.shape)
        if path[-1].key == 'scale':
            a[::3] *= -1  # the order of values, which max pooling sees, turns
    folded = jax.jit(lambda v: fold_batch_norm(model, v, size))(variables)
    assert len(jax.tree.leaves(folded.get('batch_stats', {}))) == 2 * left
    found, expected = (
        jax.jit(lambda v: model.apply(v, x, train=False))(v) for v in (folded, variables)
    )
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


def test_the_folded_program_has_no_statistics():
    model = xception_flax.create_model('xception', 7, **SMALL)
    x = np.zeros((1, 16, 16, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    folded = jax.eval_shape(lambda v: fold_batch_norm(model, v, 16), variables)
    assert not jax.tree.leaves(folded['batch_stats'])
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(folded['params'])}
    assert names == {'kernel', 'folded_bias', 'bias'}  # 'bias': the classifier's
