"""What every network has to do, whatever it is."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import xception_flax
from xception_flax import config as configs
from xception_flax import models
from xception_flax.runtime.errors import UserError

# Options that make a network small enough to be compiled here, where it has such.
SMALL = {
    'xception': {'stem': 'small', 'width': 0.125, 'middle_repeats': 1},
    'xception41': {'width': 0.125, 'middle_repeats': 1},
    'xception65': {'width': 0.125, 'middle_repeats': 1},
    'xception71': {'width': 0.125, 'middle_repeats': 1},
    'vgg16': {'fc_layers': (32,)},
    'resnet152': {'stages': (1, 1)},
    'alexnet': {'fc_layers': (32,)},
}
# Where the first fully connected layer follows the pictures' size: how much they may grow.
FLAT = {'vgg16': (21, 8), 'alexnet': (7, 3)}
SIZES = {'inception_v3': 299, 'alexnet': 227, 'lenet5': 32}
COUNTS = [
    ('inception_v3', {}, 23_817_352, 34_432),  # Keras
    ('inception_v3', {'variant': 'keras1'}, 23_626_728, 34_240),  # the paper's Table 3
    ('inception_v3', {'bn_scale': True}, 23_834_568, 34_432),  # torchvision
    ('inception_v3', {'auxiliary': True, 'bn_scale': True}, 27_161_264, 36_224),
    ('inception_v3', {'variant': 'timm'}, 23_834_568, 34_432),
    ('xception41', {}, 26_969_560, None),  # timm: 26.97, 39.92 and 42.34 million
    ('xception65', {}, 39_916_312, None),
    ('xception71', {}, 42_338_736, None),
    ('alexnet', {}, 60_965_224, 0),
    ('lenet5', {'num_classes': 10}, 60_000 + 850, 0),
    ('vgg16', {}, 138_357_544, 0),
    ('resnet152', {}, 60_419_944 - 151_424, 151_424),
    ('resnet152', {'variant': 'timm'}, 60_192_808, 151_424),
    ('resnet152', {'stages': (3, 4, 6, 3)}, 25_636_712 - 53_120, 53_120),  # ResNet-50
]


def build(name, **options):
    return xception_flax.create_model(name, 5, **{**SMALL.get(name, {}), **options})


@functools.cache
def variables(name):
    size = build(name).min_image_size
    x = jnp.zeros((1, size, size, 3))
    return jax.jit(functools.partial(build(name).init, train=False))(jax.random.key(0), x)


def pictures(name, extra=0):
    size = build(name).min_image_size + extra
    return np.random.default_rng(0).uniform(-1, 1, (4, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(('name', 'options', 'trainable', 'statistics'), COUNTS)
def test_parameters_are_counted_as_published(name, options, trainable, statistics):
    size = SIZES.get(name, 224)
    model = xception_flax.create_model(name, **options)
    x = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert set(shapes) <= {'params', 'batch_stats'}
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == trainable
    found = sum(x.size for x in jax.tree.leaves(shapes.get('batch_stats', {})))
    if statistics is None:  # two for each channel of a batch norm, which has one bias
        flat = traverse_util.flatten_dict(shapes['params'])
        biases = [x.size for path, x in flat.items() if path[-1] == 'bias' and path[0] != 'logits']
        statistics = 2 * sum(biases)
    assert found == statistics


def test_inceptions_features_shrink_as_published():
    model = xception_flax.create_model('inception_v3')
    x = jnp.zeros((1, 299, 299, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    _, state = jax.eval_shape(
        lambda v: model.apply(
            v, x, train=False, capture_intermediates=True, mutable='intermediates'
        ),
        variables,
    )
    seen = {name: value for name, value in state['intermediates'].items() if name != '__call__'}
    shapes = {name: value['__call__'][0].shape[1:] for name, value in seen.items()}
    assert [shapes[f'conv{i}'][0] for i in range(1, 6)] == [149, 147, 147, 73, 71]
    assert [shapes[f'mixed{i}'][0] for i in range(11)] == [35] * 3 + [17] * 5 + [8] * 3
    channels = [shapes[f'mixed{i}'][2] for i in range(11)]
    assert channels == [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]


@pytest.mark.parametrize('name', models.MODELS)
class TestEvery:
    def test_trains_in_bfloat16_with_finite_gradients(self, name):
        dropout = {'dropout': 0.5} if 'dropout' in models.options(name) else {}
        model = build(name, dtype=jnp.bfloat16, **dropout)
        x = pictures(name)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(params, rest):
            logits, updates = model.apply(
                {'params': params, **rest},
                x,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(1)},
            )
            assert logits.dtype == jnp.float32
            return -nn.log_softmax(logits)[:, 0].mean(), updates

        rest = {k: v for k, v in variables(name).items() if k != 'params'}
        (value, updates), grads = loss(variables(name)['params'], rest)
        assert np.isfinite(value)
        for leaf in jax.tree.leaves((grads, updates)):
            assert leaf.dtype == np.float32
            assert np.isfinite(leaf).all()
        # All of it takes part, but biases that batch norm takes away again.
        assert optax_norm(grads) > 1e-3
        assert jax.tree.structure(updates.get('batch_stats', {})) == jax.tree.structure(
            rest.get('batch_stats', {})
        )

    def test_is_deterministic_in_inference(self, name):
        apply = jax.jit(functools.partial(build(name).apply, train=False))
        first, again = (apply(variables(name), pictures(name)) for _ in range(2))
        assert first.shape == (4, 5)
        np.testing.assert_array_equal(first, again)

    def test_takes_larger_pictures(self, name):
        size = build(name).min_image_size
        height, width = (size + extra for extra in FLAT.get(name, (21, 21)))
        x = pictures(name, extra=21)[:, :height, :width]
        logits = jax.jit(functools.partial(build(name).apply, train=False))(variables(name), x)
        assert logits.shape == (4, 5)

    def test_refuses_pictures_that_are_too_small(self, name):
        size = build(name).min_image_size - 1
        with pytest.raises(ValueError, match=f'pictures of {size}x{size} are too small'):
            build(name).init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)

    def test_gives_its_features_alone(self, name):
        model = build(name)
        ends = jax.jit(lambda v, x: list(model.apply(v, x, features_only=True).values()))(
            variables(name), pictures(name)
        )
        expected = models.end_points(model)
        size = model.min_image_size
        strides = [stride for stride, _ in expected.values()]
        assert strides == sorted(set(strides))
        for array, (stride, channels) in zip(ends, expected.values(), strict=True):
            assert array.shape[::3] == (4, channels)
            # Without padding, a side loses pixels at the rim.
            assert size // stride - 8 // stride <= array.shape[1] <= -(-size // stride)
            assert np.isfinite(array).all()
        x = jnp.zeros((1, size, size, 3))
        headless = jax.eval_shape(lambda: model.init(jax.random.key(0), x, features_only=True))
        assert not {'logits', 'fc', 'fc1', 'fc2'} & set(headless['params'])
        assert set(headless['params']) < set(variables(name)['params'])

    def test_comes_back_from_a_checkpoint_bit_by_bit(self, name, tmp_path):
        model, c = build(name), configs.default()
        c.model, c.image_size = name, model.min_image_size
        xception_flax.save_pretrained(tmp_path / 'run', model, variables(name), c)
        read, restored, _ = xception_flax.load_checkpoint(tmp_path / 'run')
        assert read == model
        jax.tree.map(np.testing.assert_array_equal, restored, variables(name))

    def test_tells_of_impossible_options(self, name):
        with pytest.raises(UserError, match=f'{name}: num_classes is 0'):
            xception_flax.create_model(name, 0)
        with pytest.raises(UserError, match='has no option'):
            build(name, dropuot=0.5)


@pytest.mark.parametrize('name', ['xception', 'xception65', 'resnet152'])
def test_output_stride_trades_strides_for_dilation(name):
    large = {'xception': {'stem': 'imagenet'}, 'resnet152': {'stages': (1, 1, 1, 1)}}
    x, shapes = jnp.zeros((1, 96, 96, 3)), []
    for stride in (32, 16, 8):
        model = build(name, output_stride=stride, **large.get(name, {}))
        assert list(models.end_points(model).values())[-1][0] == stride
        shapes.append(jax.eval_shape(lambda m=model: m.init(jax.random.key(0), x)))
    assert shapes[0] == shapes[1] == shapes[2]


def test_xceptions_end_points():
    assert models.end_points(xception_flax.create_model('xception')) == {
        'entry_flow/conv2': (2, 64),
        'entry_flow/block1': (4, 128),
        'entry_flow/block2': (8, 256),
        'middle_flow': (16, 728),
        'exit_flow': (32, 2048),
    }


def optax_norm(tree):
    return float(np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree))))


def test_the_auxiliary_classifier_takes_part_in_training_alone():
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
