import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import xception_flax
from xception_flax.models import MODELS, layers, summary

# Separable convolutions of Xception at 299x299: side of their output, and channels in and out.
SEPARABLE = [
    (147, 64, 128), (147, 128, 128), (74, 128, 256), (74, 256, 256), (37, 256, 728), (37, 728, 728),
    *[(19, 728, 728)] * 24,
    (19, 728, 728), (19, 728, 1024), (10, 1024, 1536), (10, 1536, 2048),
]  # fmt: skip


@functools.cache
def summarise(name, size=299, **options):
    return summary.summarise(xception_flax.create_model(name, **options), size)


def works(node):
    return [layer for layer in summary.layers(node) if layer.kernel]


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


def test_resnet_152_does_the_work_that_its_paper_says():
    assert summarise('resnet152', 224).macs == pytest.approx(11.3e9, rel=0.002)  # three digits


@pytest.mark.parametrize(('name', 'values'), [('xception', 35.83e6), ('inception_v3', 8.97e6)])
def test_outputs_of_convolutions_and_dense_layers_are_as_many_as_timm_publishes(name, values):
    found = sum(math.prod(layer.output) for layer in works(summarise(name)))
    assert found == pytest.approx(values, abs=0.005e6)  # the digits that it gives


@pytest.mark.parametrize('name', MODELS)
def test_every_variable_is_in_one_layer(name):
    options = {'stages': (2, 1)} if name == 'resnet152' else {}  # to save time
    model = xception_flax.create_model(name, num_classes=7, **options)
    x = jnp.zeros((1, 96, 96, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    network = summary.summarise(model, 96)
    for collection, count in (('params', 'parameters'), ('batch_stats', 'statistics')):
        expected = sum(leaf.size for leaf in jax.tree.leaves(shapes.get(collection, {})))
        assert sum(getattr(layer, count) for layer in summary.layers(network)) == expected
        assert getattr(network, count) == expected
    others = {layer.path for layer in summary.layers(network) if layer.kind == 'other'}
    assert others == ({'pool1', 'pool2'} if name == 'lenet5' else set())  # weighted averages


def test_a_layer_has_its_shape_and_its_work():
    found = {layer.path: layer for layer in summary.layers(summarise('xception'))}
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
    """What the networks here do not have, or not all of them."""

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


def test_grouped_strided_and_foreign_layers_are_counted():
    network = summary.summarise(Odd(), 21)
    found = {layer.path: layer for layer in summary.layers(network)}
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
    comparison = summary.compare_with_regular(network)
    assert comparison.convolutions == 1
    # The pointwise one's bias stays; batch norm and the depthwise one's bias go.
    separable = 9 * 32 + 32 + 64 + 32 * 8
    assert comparison.regular_parameters == network.parameters - separable + 9 * 32 * 8
    assert comparison.regular_macs - network.macs == 25 * (9 * 32 * 8 - 9 * 32 - 32 * 8)


def test_activations_are_in_bytes_of_the_compute_type():
    wide = summarise('xception').activation_bytes
    narrow = summarise('xception', dtype=jnp.bfloat16).activation_bytes
    assert narrow == wide / 2 + 2 * 1000  # logits stay float32
    values = sum(math.prod(layer.output) for layer in summary.layers(summarise('xception')))
    assert wide == 4 * values


def test_regular_convolutions_would_cost_what_the_formula_says():
    network = summarise('xception')
    comparison = summary.compare_with_regular(network)
    assert comparison.convolutions == 34
    assert comparison.depthwise_macs == sum(9 * s * s * c for s, c, _ in SEPARABLE) == 132_190_344
    more = [9 * i * o - 9 * i - i * o for _, i, o in SEPARABLE]
    assert comparison.regular_parameters == 22_855_952 + sum(more) == 179_071_688
    positions = [s * s for s, _, _ in SEPARABLE]
    assert comparison.regular_macs == 8_357_403_496 + sum(
        n * m for n, m in zip(positions, more, strict=True)
    )


def test_what_stands_between_depthwise_and_pointwise_does_not_count_as_regular():
    plain = summary.compare_with_regular(summarise('xception'))
    assert summary.compare_with_regular(summarise('xception', intermediate='bn_relu')) == plain
    assert summary.compare_with_regular(summarise('inception_v3')).convolutions == 0


def test_the_articles_example():
    x = jnp.zeros((1, 8, 8, 3))

    def weights(module, **arguments):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, **arguments))['params']
        return sum(
            leaf.size for path, leaf in jax.tree.leaves_with_path(shapes) if 'bn' not in str(path)
        )

    assert weights(layers.ConvBN(64), train=False) == 1728
    assert weights(layers.SeparableConv(64), train=False) == 27 + 192 == 219


def test_rows_fold_what_repeats_and_add_up():
    network = summarise('xception')
    rows = list(summary.rows(network))
    assert len(rows) < 60
    names = [(row.depth, row.name, row.count) for row in rows]
    assert (1, '8 x block1-8', 8) in names
    assert (2, '3 x sepconv1-3/depthwise', 3) in names
    assert (1, 'conv1/conv', 1) in names
    assert sum(r.count * r.node.parameters for r in rows if r.depth == 0) == network.parameters
    flow = [name for _, name, _ in names].index('middle_flow')
    block = rows[flow + 1]
    inside = [row for row in rows[flow + 2 :] if row.depth == 2][:3]
    assert sum(row.count * row.node.macs for row in inside) == block.node.macs
    assert 8 * block.node.macs == rows[flow].node.macs


def test_rows_of_other_networks_fold_too():
    names = [row.name for row in summary.rows(summarise('resnet152', 224))]
    assert '35 x stage3_block2-36' in names
    assert 'conv1/conv' in names
    first = next(summary.rows(summarise('vgg16', 224)))
    assert (first.name, first.depth, first.count) == ('block1_conv1', 0, 1)


def test_a_group_puts_out_what_its_module_returns():
    groups = {row.name: row.node for row in summary.rows(summarise('xception', residual=False))}
    assert groups['entry_flow'].output == (19, 19, 728)  # after the pooling, which is no layer
    assert groups['exit_flow'].output == (10, 10, 2048)
