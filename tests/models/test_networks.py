"""What every network does: its numbers of parameters, training, inference, features."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import random_variables

import xception_flax
from xception_flax import models, ops
from xception_flax.base.errors import UserError
from xception_flax.ops import depthwise, separable
from xception_flax.runtime.checkpoints import checksums
from xception_flax.training import losses

# Options that make a network quick to compile.
SMALL = {
    'xception': {'stem': 'small', 'width': 0.125, 'middle_repeats': 1},
    'xception41': {'width': 0.125, 'middle_repeats': 0},
    'xception65': {'width': 0.125, 'middle_repeats': 0},
    'xception71': {'width': 0.125, 'middle_repeats': 0},
    'vgg16': {'fc_layers': (32,)},
    'resnet152': {'stages': (1, 1)},
    'alexnet': {'fc_layers': (32,)},
}
# Networks for one size of images: their first fully connected layer depends on it.
FIXED_SIZE = ('vgg16', 'alexnet')
COUNTS = [
    ('inception_v3', {}, 23_817_352, 34_432),  # Keras
    ('inception_v3', {'variant': 'keras1'}, 23_626_728, 34_240),  # the paper's Table 3
    ('inception_v3', {'bn_scale': True}, 23_834_568, 34_432),  # torchvision
    ('inception_v3', {'auxiliary': True, 'bn_scale': True}, 27_161_264, 36_224),
    ('inception_v3', {'variant': 'timm'}, 23_834_568, 34_432),
    # Channels of 8, 16, ... 192: as many parameters as Xception in experiments/studies.
    ('inception_v3', {'stem': 'small', 'width': 0.094, 'num_classes': 10}, 211_226, 3_376),
    ('vgg16', {}, 138_357_544, 0),
    ('resnet152', {}, 60_419_944 - 151_424, 151_424),
    ('resnet152', {'stages': (3, 4, 6, 3)}, 25_636_712 - 53_120, 53_120),  # ResNet-50
    ('alexnet', {}, 60_965_224, 0),
    ('lenet5', {'num_classes': 10}, 60_000 + 850, 0),  # its paper, and our classifier
]


@pytest.fixture
def quick_to_compile(monkeypatch):
    """Replaces the depthwise convolution for CPU, which has many operations, by the reference."""
    for module in (ops, separable):
        monkeypatch.setattr(module, 'depthwise_conv', depthwise.convolution)


def build(name, **options):
    return xception_flax.create_model(name, 5, **{**SMALL.get(name, {}), **options})


@functools.cache
def variables(name):
    return random_variables(build(name), build(name).min_image_size)


def images(name, extra=0):
    size = build(name).min_image_size + extra
    return np.random.default_rng(0).uniform(-1, 1, (4, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(('name', 'options', 'trainable', 'statistics'), COUNTS)
def test_parameters_are_counted_as_published(name, options, trainable, statistics):
    size = {'inception_v3': 299, 'alexnet': 227}.get(name, 224)
    model = xception_flax.create_model(name, **options)
    shapes = models.abstract_variables(model, size)
    assert set(shapes) <= {'params', 'batch_stats'}
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == trainable
    assert sum(x.size for x in jax.tree.leaves(shapes.get('batch_stats', {}))) == statistics


# Those that take longest to compile.
SLOW = ('alexnet', 'inception_v3', 'vgg16', 'xception41', 'xception65', 'xception71')


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in models.MODELS
    ],
)
def test_trains_in_bfloat16_with_finite_gradients(name, quick_to_compile):
    model = build(name, dtype=jnp.bfloat16)
    x = images(name)

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
    (value, updates), grads = jax.device_get(loss(variables(name)['params'], rest))
    assert np.isfinite(value)
    for leaf in jax.tree.leaves((grads, updates)):
        assert leaf.dtype == np.float32
        assert np.isfinite(leaf).all()
    assert sum(np.square(x).sum() for x in jax.tree.leaves(grads)) > 1e-6
    new, old = updates.get('batch_stats', {}), rest.get('batch_stats', {})
    assert jax.tree.structure(new) == jax.tree.structure(old)


def test_the_classifier_starts_at_its_bias():
    """A sigmoid for each of 7,186 classes: at zero the loss of an image is 7,186 log 2."""
    for bias in (0.0, -10.0):
        expected = 7186 * np.log1p(np.exp(bias))
        model = xception_flax.create_model('lenet5', 7186, head_bias=bias)
        x = images('lenet5')
        variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)
        loss = losses.sigmoid(model.apply(variables, x, train=False), jnp.zeros((4, 7186)))
        assert 0.9 * expected < loss.mean() < 1.1 * expected


def test_the_product_of_the_logits_is_asked_for_in_float32():
    model = build('xception', dtype=jnp.bfloat16)
    apply = functools.partial(model.apply, train=False)
    text = jax.jit(apply).lower(variables('xception'), images('xception')).as_text()
    products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
    assert 'precision = [HIGHEST, HIGHEST]' in products[-1]
    assert 'tensor<4x5xf32>' in products[-1]


@pytest.mark.parametrize('name', models.MODELS)
class TestEveryNetwork:
    @pytest.mark.slow  # tests of training initialise Xception
    def test_is_initialised_with_finite_values(self, name):
        x = images(name)
        init = jax.jit(functools.partial(build(name).init, train=False))
        found = jax.device_get(init(jax.random.key(0), x))
        assert jax.tree.structure(found) == jax.tree.structure(variables(name))
        for leaf, expected in zip(*map(jax.tree.leaves, (found, variables(name))), strict=True):
            assert (leaf.shape, leaf.dtype) == (expected.shape, np.float32)
            assert np.isfinite(leaf).all()

    def test_an_empty_batch_has_no_logits(self, name):
        apply = functools.partial(build(name).apply, train=False)
        assert jax.eval_shape(apply, variables(name), images(name)[:0]).shape == (0, 5)

    def test_is_deterministic_in_inference(self, name):
        apply = jax.jit(functools.partial(build(name).apply, train=False))
        first, again = (apply(variables(name), images(name)) for _ in range(2))
        assert first.shape == (4, 5)
        np.testing.assert_array_equal(first, again)

    def test_takes_larger_images(self, name):
        x = images(name, extra=21)
        if name in FIXED_SIZE:
            x = x[:, : x.shape[1] - 19]  # too few rows for another feature
        logits = jax.jit(functools.partial(build(name).apply, train=False))(variables(name), x)
        assert logits.shape == (4, 5)

    def test_refuses_images_that_are_too_small(self, name):
        size = build(name).min_image_size - 1
        with pytest.raises(ValueError, match=f'images of {size}x{size} are too small'):
            build(name).init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)

    def test_refuses_impossible_options(self, name):
        with pytest.raises(UserError, match=f'{name}: num_classes is 0'):
            xception_flax.create_model(name, 0)
        with pytest.raises(UserError, match="did you mean 'dtype'"):
            build(name, dtpye=jnp.bfloat16)

    def test_gives_features_without_its_head(self, name):
        model, x = build(name), images(name)
        init = functools.partial(model.init, jax.random.key(0), x)
        with_head, without = (
            jax.eval_shape(init),
            jax.eval_shape(functools.partial(init, features_only=True)),
        )
        assert set(without['params']) < set(with_head['params'])
        assert 'logits' not in without['params']
        ends = jax.eval_shape(
            functools.partial(model.apply, features_only=True), variables(name), x
        )
        expected = models.end_points(model)
        assert ends.keys() == expected.keys()
        assert {end: array.shape[-1] for end, array in ends.items()} == {
            end: channels for end, (_, channels) in expected.items()
        }

    def test_comes_back_from_a_checkpoint_bit_by_bit(self, name, tmp_path):
        saved = variables(name)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / 'checkpoint', saved)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / 'checkpoint', saved)
        assert checksums(restored) == checksums(saved)


@pytest.mark.parametrize(
    ('name', 'strides', 'channels'),
    [
        ('xception', [2, 4, 8, 16, 32], [64, 128, 256, 728, 2048]),
        ('xception41', [2, 4, 8, 16, 32], [128, 256, 728, 1024, 2048]),
        ('xception71', [2, 4, 8, 16, 32], [128, 256, 728, 1024, 2048]),
        ('inception_v3', [2, 4, 8, 16, 32], [64, 192, 288, 768, 2048]),
        ('vgg16', [1, 2, 4, 8, 16, 32], [64, 128, 256, 512, 512, 512]),
        ('resnet152', [2, 4, 8, 16, 32], [64, 256, 512, 1024, 2048]),
        ('alexnet', [4, 8, 16, 32], [96, 256, 256, 256]),
        ('lenet5', [1, 2, 4], [6, 16, 120]),
    ],
)
def test_end_points_have_the_strides_and_channels_of_the_stages(name, strides, channels):
    found = list(models.end_points(xception_flax.create_model(name)).values())
    assert found == list(zip(strides, channels, strict=True))


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('xception', {'width': 0.125, 'middle_repeats': 1}),
        pytest.param(
            'xception',
            {'width': 0.125, 'middle_repeats': 1, 'variant': 'timm'},
            marks=pytest.mark.slow,
        ),
        ('xception41', {'width': 0.125, 'middle_repeats': 1}),
        ('resnet152', {'stages': (1, 1, 1, 2)}),
        pytest.param(
            'resnet152', {'stages': (1, 1, 1, 2), 'variant': 'timm'}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_finer_output_stride_gives_the_same_features_at_more_positions(
    name, options, quick_to_compile
):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 96, 81, 3)).astype(np.float32)
    by_stride = {
        stride: xception_flax.create_model(name, 5, **options, output_stride=stride)
        for stride in (32, 16, 8)
    }

    @jax.jit
    def last_features(variables):
        return {
            stride: list(model.apply(variables, x, features_only=True).values())[-1]
            for stride, model in by_stride.items()
        }

    found = last_features(random_variables(by_stride[32], 96))
    coarse = found[32]
    for stride, step in ((16, 2), (8, 4)):
        shared = found[stride][:, ::step, ::step]
        assert found[stride].shape[1] == step * coarse.shape[1] == step * shared.shape[1]
        error = np.abs(shared - coarse).max()
        assert error < 1e-5 * np.abs(coarse).max()  # float32; the network is up to 40 layers deep
