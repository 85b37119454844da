"""Layers of networks: their shapes, parameters and multiply-adds."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import xception_flax
from xception_flax.models import MODELS, abstract_variables, counts, layers


@functools.cache
def summarise(name, size=299, **options):
    return counts.summarise(xception_flax.create_model(name, **options), size)


@pytest.mark.parametrize(
    ('name', 'size', 'parameters', 'statistics', 'macs'),
    [
        ('xception', 299, 22_855_952, 54_528, 8_357_403_496),
        ('inception_v3', 299, 23_817_352, 34_432, 5_713_216_096),
        # 15.47 G in torchvision's table: per stage, side squared x 9 x channels in x out.
        ('vgg16', 224, 138_357_544, 0, 15_470_264_320),
    ],
)
def test_totals_are_as_published(name, size, parameters, statistics, macs):
    network = summarise(name, size)
    assert (network.parameters, network.statistics, network.macs) == (parameters, statistics, macs)


def test_resnet_152_has_the_multiply_adds_of_its_paper():
    assert summarise('resnet152', 224).macs == pytest.approx(11.3e9, rel=0.002)  # three digits


@pytest.mark.parametrize(('name', 'values'), [('xception', 35.83e6), ('inception_v3', 8.97e6)])
def test_the_number_of_outputs_is_as_timm_publishes(name, values):
    with_kernel = [layer for layer in counts.layers(summarise(name)) if layer.kernel]
    found = sum(math.prod(layer.output) for layer in with_kernel)
    assert found == pytest.approx(values, abs=0.005e6)  # two decimals


@pytest.mark.parametrize('name', MODELS)
def test_every_variable_is_in_one_layer(name):
    options = {'stages': (2, 1)} if name == 'resnet152' else {}  # to save time
    model = xception_flax.create_model(name, num_classes=7, **options)
    shapes = abstract_variables(model, 96)
    network = counts.summarise(model, 96)
    for collection, count in (('params', 'parameters'), ('batch_stats', 'statistics')):
        expected = sum(leaf.size for leaf in jax.tree.leaves(shapes.get(collection, {})))
        assert sum(getattr(layer, count) for layer in counts.layers(network)) == expected
        assert getattr(network, count) == expected
    others = {layer.path for layer in counts.layers(network) if layer.kind == 'other'}
    assert others == ({'pool1', 'pool2'} if name == 'lenet5' else set())  # weighted averages


def test_a_layer_has_its_shape_and_its_multiply_adds():
    found = {layer.path: layer for layer in counts.layers(summarise('xception'))}
    stem = found['entry_flow/conv1/conv']
    assert (stem.kind, stem.kernel, stem.strides) == ('conv', (3, 3, 3, 32), 2)
    assert (stem.output, stem.parameters) == ((149, 149, 32), 27 * 32)
    assert stem.macs == 149 * 149 * 27 * 32
    depthwise = found['exit_flow/sepconv4/depthwise']
    assert (depthwise.kind, depthwise.kernel) == ('depthwise', (3, 3, 1, 1536))
    assert depthwise.macs == 10 * 10 * 9 * 1536
    assert found['exit_flow/sepconv4/pointwise'].kind == 'pointwise'
    bn = found['middle_flow/block8/sepconv3/bn']
    assert (bn.kind, bn.parameters, bn.statistics, bn.macs) == ('batch_norm', 1456, 1456, 0)
    logits = found['logits']
    assert (logits.kind, logits.output) == ('dense', (1000,))
    assert (logits.parameters, logits.macs) == (2_049_000, 2_048_000)


class Odd(nn.Module):
    """Layers that our networks do not have, or not all of them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(16, (5, 3), strides=2, padding='VALID', name='wide')(x)
        x = nn.Conv(32, (3, 3), feature_group_count=4, name='grouped')(x)
        x = nn.Conv(32, (3, 3), (2, 2), feature_group_count=32, name='strided')(x)
        x = nn.BatchNorm(not train, name='between')(x)
        x = nn.Conv(8, (1, 1), name='pointwise')(x)
        x = nn.Conv(8, (1, 1), name='projection')(x)
        x = x * self.param('gain', nn.initializers.ones, (8,))
        return nn.Dense(4)(x)


def test_grouped_strided_and_other_layers_are_counted():
    network = counts.summarise(Odd(), 21)
    found = {layer.path: layer for layer in counts.layers(network)}
    assert [found[name].kind for name in ('wide', 'grouped', 'strided', 'pointwise')] == [
        'conv', 'conv', 'depthwise', 'pointwise',
    ]  # fmt: skip
    assert found['wide'].output == (9, 10, 16)
    assert found['wide'].macs == 9 * 10 * 15 * 3 * 16
    assert found['grouped'].macs == 9 * 10 * 9 * (16 // 4) * 32
    assert (found['strided'].macs, found['strided'].strides) == (5 * 5 * 9 * 32, 2)
    assert found['projection'].kind == 'conv'
    assert found['Dense_0'].macs == 5 * 5 * 8 * 4
    assert (found[''].kind, found[''].parameters) == ('other', 8)


def test_activations_are_counted_in_bytes_of_the_compute_type():
    wide = summarise('xception').activation_bytes
    narrow = summarise('xception', dtype=jnp.bfloat16).activation_bytes
    assert narrow == wide / 2 + 2 * 1000  # logits stay float32
    values = sum(math.prod(layer.output) for layer in counts.layers(summarise('xception')))
    assert wide == 4 * values


def test_the_output_of_a_group_is_that_of_its_module():
    network = summarise('xception', residual=False)
    groups = {node.path: node for node in network.members}
    assert groups['entry_flow'].output == (19, 19, 728)  # after max pooling, which has no variables
    assert groups['exit_flow'].output == (10, 10, 2048)


def test_a_separable_convolution_has_the_weights_of_the_articles_example():
    x = jnp.zeros((1, 8, 8, 3))

    def weights(module, **arguments):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, **arguments))['params']
        return sum(
            leaf.size for path, leaf in jax.tree.leaves_with_path(shapes) if 'bn' not in str(path)
        )

    assert weights(layers.ConvBN(64), train=False) == 1728
    assert weights(layers.SeparableConv(64), train=False) == 27 + 192 == 219
