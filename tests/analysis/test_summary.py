"""Rows of a network's table, and its cost beside that of regular convolutions."""

import functools

import flax.linen as nn

import xception_flax
from xception_flax.analysis import summary
from xception_flax.models import counts

# Separable convolutions of Xception at 299x299: side of their output, and channels in and out.
SEPARABLE = [
    (147, 64, 128), (147, 128, 128), (74, 128, 256), (74, 256, 256), (37, 256, 728), (37, 728, 728),
    *[(19, 728, 728)] * 24,
    (19, 728, 728), (19, 728, 1024), (10, 1024, 1536), (10, 1536, 2048),
]  # fmt: skip


@functools.cache
def summarise(name, size=299, **options):
    return counts.summarise(xception_flax.create_model(name, **options), size)


def test_regular_convolutions_cost_what_the_formula_says():
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


def test_layers_between_depthwise_and_pointwise_do_not_count_as_regular():
    plain = summary.compare_with_regular(summarise('xception'))
    assert summary.compare_with_regular(summarise('xception', intermediate='bn_relu')) == plain
    assert summary.compare_with_regular(summarise('inception_v3')).convolutions == 0


class Separable(nn.Module):
    """One separable convolution with biases and batch norm inside, among other layers."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), feature_group_count=3, name='grouped')(x)
        x = nn.Conv(6, (3, 3), (2, 2), feature_group_count=6, name='depthwise')(x)
        x = nn.BatchNorm(not train, name='between')(x)
        x = nn.Conv(8, (1, 1), name='pointwise')(x)
        x = nn.Conv(8, (1, 1), name='projection')(x)
        return nn.Dense(4)(x)


def test_only_the_bias_of_the_pointwise_convolution_stays():
    network = counts.summarise(Separable(), 10)
    comparison = summary.compare_with_regular(network)
    assert comparison.convolutions == 1
    separable = 9 * 6 + 6 + 2 * 6 + 6 * 8  # depthwise with bias, batch norm, pointwise
    assert comparison.regular_parameters == network.parameters - separable + 9 * 6 * 8
    assert comparison.regular_macs - network.macs == 25 * (9 * 6 * 8 - 9 * 6 - 6 * 8)


def test_rows_fold_equal_blocks_and_add_up():
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


def test_rows_of_other_networks_are_folded():
    names = [row.name for row in summary.rows(summarise('resnet152', 224))]
    assert '35 x stage3_block2-36' in names
    assert 'conv1/conv' in names
    first = next(summary.rows(summarise('vgg16', 224)))
    assert (first.name, first.depth, first.count) == ('block1_conv1', 0, 1)
