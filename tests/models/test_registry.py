"""What every network has to do, whatever it is."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import xception_flax
from xception_flax import models, ops
from xception_flax.models import history, layers
from xception_flax.ops import depthwise, separable
from xception_flax.runtime.checkpoints import checksums
from xception_flax.runtime.errors import UserError

# Options that make a network small enough to be compiled here, where it has such.
SMALL = {
    'xception': {'stem': 'small', 'width': 0.125, 'middle_repeats': 1},
    'xception41': {'width': 0.125, 'middle_repeats': 0},
    'xception65': {'width': 0.125, 'middle_repeats': 0},
    'xception71': {'width': 0.125, 'middle_repeats': 0},
    'vgg16': {'fc_layers': (32,)},
    'resnet152': {'stages': (1, 1)},
    'alexnet': {'fc_layers': (32,)},
}
# Those whose first fully connected layer follows the size of the pictures.
FIXED_SIZE = ('vgg16', 'alexnet')
COUNTS = [
    ('inception_v3', {}, 23_817_352, 34_432),  # Keras
    ('inception_v3', {'variant': 'keras1'}, 23_626_728, 34_240),  # the paper's Table 3
    ('inception_v3', {'bn_scale': True}, 23_834_568, 34_432),  # torchvision
    ('inception_v3', {'auxiliary': True, 'bn_scale': True}, 27_161_264, 36_224),
    ('inception_v3', {'variant': 'timm'}, 23_834_568, 34_432),
    # Channels of 8, 16, ... 192: of the size of Xception in experiments/studies.
    ('inception_v3', {'stem': 'small', 'width': 0.094, 'num_classes': 10}, 211_226, 3_376),
    ('vgg16', {}, 138_357_544, 0),
    ('resnet152', {}, 60_419_944 - 151_424, 151_424),
    ('resnet152', {'stages': (3, 4, 6, 3)}, 25_636_712 - 53_120, 53_120),  # ResNet-50
    ('alexnet', {}, 60_965_224, 0),
    ('lenet5', {'num_classes': 10}, 60_000 + 850, 0),  # the paper's, and our classifier
]


@pytest.fixture
def quick_to_compile(monkeypatch):
    """The reference in place of the depthwise convolution for CPU, which has many operations."""
    for module in (ops, separable):
        monkeypatch.setattr(module, 'depthwise_conv', depthwise.convolution)


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
    size = {'inception_v3': 299, 'alexnet': 227}.get(name, 224)
    model = xception_flax.create_model(name, **options)
    x = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert set(shapes) <= {'params', 'batch_stats'}
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == trainable
    assert sum(x.size for x in jax.tree.leaves(shapes.get('batch_stats', {}))) == statistics


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
    convolutions = [seen[f'conv{i}']['conv']['__call__'][0].shape[1] for i in range(1, 6)]
    assert convolutions == [149, 147, 147, 73, 71]
    assert [shapes[f'mixed{i}'][0] for i in range(11)] == [35] * 3 + [17] * 5 + [8] * 3
    channels = [shapes[f'mixed{i}'][2] for i in range(11)]
    assert channels == [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]


@pytest.mark.parametrize('name', models.MODELS)
class TestEvery:
    def test_trains_in_bfloat16_with_finite_gradients(self, name, quick_to_compile):
        model = build(name, dtype=jnp.bfloat16)
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
        x = pictures(name, extra=21)
        if name in FIXED_SIZE:
            x = x[:, : x.shape[1] - 19]  # so little that no feature is added
        logits = jax.jit(functools.partial(build(name).apply, train=False))(variables(name), x)
        assert logits.shape == (4, 5)

    def test_refuses_pictures_that_are_too_small(self, name):
        size = build(name).min_image_size - 1
        with pytest.raises(ValueError, match=f'pictures of {size}x{size} are too small'):
            build(name).init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)

    def test_tells_of_impossible_options(self, name):
        with pytest.raises(UserError, match=f'{name}: num_classes is 0'):
            xception_flax.create_model(name, 0)
        with pytest.raises(UserError, match="did you mean 'dtype'"):
            build(name, dtpye=jnp.bfloat16)

    def test_gives_features_without_a_classifier(self, name):
        model, x = build(name), pictures(name)
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


@pytest.mark.parametrize('size', [8, 28, 33])
def test_networks_for_small_pictures_have_features_of_the_same_sizes(size):
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
        ('xception', {'width': 0.125, 'middle_repeats': 1, 'variant': 'timm'}),
        ('xception41', {'width': 0.125, 'middle_repeats': 1}),
        ('resnet152', {'stages': (1, 1, 1, 2)}),
        ('resnet152', {'stages': (1, 1, 1, 2), 'variant': 'timm'}),
    ],
)
def test_a_finer_output_stride_gives_the_same_features_at_more_places(
    name, options, quick_to_compile
):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 96, 81, 3)).astype(np.float32)
    models = {
        stride: xception_flax.create_model(name, 5, **options, output_stride=stride)
        for stride in (32, 16, 8)
    }

    @jax.jit
    def last_features():
        variables = models[32].init(jax.random.key(0), x, features_only=True)
        return {
            stride: list(model.apply(variables, x, features_only=True).values())[-1]
            for stride, model in models.items()
        }

    found = last_features()
    coarse = found[32]
    for stride, step in ((16, 2), (8, 4)):
        places = found[stride][:, ::step, ::step]
        assert found[stride].shape[1] == step * coarse.shape[1] == step * places.shape[1]
        error = np.abs(places - coarse).max()
        assert error < 1e-5 * np.abs(coarse).max()  # float32; the network is up to 40 layers deep


def test_the_gradient_of_a_max_pool_with_holes_goes_to_the_maximum():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))

    def by_phases(x):  # pooling each of the four phases of the grid by itself
        y = jnp.zeros_like(x)
        for i in (0, 1):
            for j in (0, 1):
                phase = layers.max_pool(x[:, i::2, j::2], 1, symmetric=True)
                y = y.at[:, i::2, j::2].set(phase)
        return y

    value, pull = jax.vjp(
        functools.partial(layers.max_pool, strides=1, dilation=2, symmetric=True), x
    )
    expected, pull_expected = jax.vjp(by_phases, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(pull(x)[0], pull_expected(x)[0], atol=1e-6)  # sums of up to nine


def test_lenet_sees_the_papers_sixty_connections():
    assert sum(map(len, history.CONNECTED)) == 60
    # Table I by its other side: the maps that see the first of the six.
    assert [i for i, seen in enumerate(history.CONNECTED) if 0 in seen] == [
        0, 4, 5, 6, 9, 10, 11, 12, 14, 15
    ]  # fmt: skip


def test_local_response_norm_by_hand():
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4) * 100
    squares = np.array([14, 30, 30, 29]) * 1e4
    expected = x.ravel() / (2 + 1e-4 * squares) ** 0.75
    np.testing.assert_allclose(history.local_response_norm(x).ravel(), expected, rtol=1e-6)
