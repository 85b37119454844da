"""Drawings of networks: what their boxes and shortcuts say, and that they can be read."""

import functools

import cv2
import pytest
from matplotlib.patches import FancyBboxPatch

import xception_flax
from xception_flax.analysis import drawing
from xception_flax.analysis.drawing import Block
from xception_flax.models import counts, layers


@functools.cache
def flows(name='xception', size=299, num_classes=1000, **options):
    model = xception_flax.create_model(name, num_classes, **options)
    network = counts.summarise(model, size)
    make = drawing.xception_flows if name == 'xception' else drawing.stage_flows
    return make(model, network, 'images')


def texts(parts):
    boxes = [box for part in parts for box in (part.boxes if isinstance(part, Block) else [part])]
    return [box.text for box in boxes]


def shortcuts(parts):
    blocks = [part for part in parts if isinstance(part, Block)]
    return [(block.projection and block.projection.text, block.chained) for block in blocks]


def test_the_default_is_figure_5_of_the_paper():
    entry, middle, exits = flows()
    titles = [flow.title for flow in (entry, middle, exits)]
    assert titles == ['Entry flow', 'Middle flow', 'Exit flow']
    assert texts(entry.parts) == [
        'Conv 32, 3x3, stride=2x2', 'ReLU', 'Conv 64, 3x3', 'ReLU',
        'SeparableConv 128, 3x3', 'ReLU', 'SeparableConv 128, 3x3', 'MaxPooling 3x3, stride=2x2',
        'ReLU', 'SeparableConv 256, 3x3', 'ReLU', 'SeparableConv 256, 3x3',
        'MaxPooling 3x3, stride=2x2',
        'ReLU', 'SeparableConv 728, 3x3', 'ReLU', 'SeparableConv 728, 3x3',
        'MaxPooling 3x3, stride=2x2',
    ]  # fmt: skip
    projections = [(f'Conv {c}, 1x1\nstride=2x2', False) for c in (128, 256, 728, 1024)]
    assert shortcuts(entry.parts) == projections[:3]
    assert entry.result == middle.source == middle.result == '19x19x728 feature maps'
    assert texts(middle.parts) == ['ReLU', 'SeparableConv 728, 3x3'] * 3
    assert shortcuts(middle.parts) == [(None, False)]
    assert middle.note == 'Repeated 8 times'
    assert texts(exits.parts) == [
        'ReLU', 'SeparableConv 728, 3x3', 'ReLU', 'SeparableConv 1024, 3x3',
        'MaxPooling 3x3, stride=2x2', 'SeparableConv 1536, 3x3', 'ReLU', 'SeparableConv 2048, 3x3',
        'ReLU', 'GlobalAveragePooling',
    ]  # fmt: skip
    assert shortcuts(exits.parts) == projections[3:]
    assert exits.result == '2048-dimensional vectors'
    assert texts(exits.head) == ['Dropout 0.5', 'Logistic regression']
    assert exits.head[-1].detail == '1000 classes'


def test_a_network_without_shortcuts_has_none_in_its_drawing():
    for flow, default in zip(flows(residual=False), flows(), strict=True):
        assert not shortcuts(flow.parts)
        assert texts(flow.parts) == texts(default.parts)


def test_the_articles_variant_shows_its_differences():
    entry, middle, exits = flows(variant='article')
    assert [chained for _, chained in shortcuts(entry.parts)] == [False, True, True]
    assert texts(middle.parts)[-1] == 'ReLU'
    assert texts(exits.parts)[-2:] == ['SeparableConv 2048, 3x3', 'GlobalAveragePooling']


def test_options_are_shown():
    entry, middle, exits = flows(
        size=32, num_classes=10, stem='small', width=0.125, middle_repeats=1,
        intermediate='bn_elu', fc_layers=(64, 32), dropout=0.0,
    )  # fmt: skip
    assert texts(entry.parts)[0] == 'Conv 8, 3x3'
    assert middle.note == ''
    assert middle.source == '4x4x88 feature maps'
    assert middle.parts[0].boxes[1].detail == 'depthwise, BN, ELU, pointwise'
    assert texts(exits.head) == [
        'Fully connected 64', 'ReLU', 'Fully connected 32', 'ReLU', 'Logistic regression',
    ]  # fmt: skip
    assert len(flows(size=71, middle_repeats=0)) == 2


@pytest.mark.parametrize('intermediate', layers.INTERMEDIATE)
def test_every_intermediate_can_be_drawn(intermediate):
    entry, *_ = flows(size=32, stem='small', width=0.125, intermediate=intermediate)
    names = {'bn': 'BN', 'relu': 'ReLU', 'elu': 'ELU'}
    inside = [names[step] for step in intermediate.split('_') if step != 'none']
    block = next(part for part in entry.parts if isinstance(part, Block))
    detail = next(box.detail for box in block.boxes if box.kind == 'sepconv')
    assert detail == (', '.join(['depthwise', *inside, 'pointwise']) if inside else '')


def test_other_networks_are_drawn_as_stages():
    (resnet,) = flows('resnet152', 64, stages=(3, 1))
    assert texts(resnet.parts) == [
        'conv1', 'stage1_block1', '2 x stage1_block2-3', 'stage2_block1',
    ]  # fmt: skip
    assert resnet.result == '8x8x512 feature maps'
    assert texts(resnet.head) == ['logits']
    (vgg,) = flows('vgg16', 32, batch_norm=True)
    assert len(vgg.parts) == 13
    assert texts(vgg.head) == ['fc1', 'fc2', 'logits']
    (inception,) = flows('inception_v3', auxiliary=True)
    assert 'aux' not in texts(inception.parts) + texts(inception.head)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'variant': 'article', 'intermediate': 'bn_relu', 'fc_layers': (4096, 4096), 'size': 71},
        {'width': 2.0, 'middle_repeats': 0, 'size': 71, 'num_classes': 21_843},
        {'name': 'vgg16', 'size': 224},
    ],
)
def test_no_text_leaves_its_box_or_touches_another(options):
    image = drawing.figure(flows(**options), 'a caption\nof two lines')
    image.canvas.draw()
    (axes,) = image.axes
    written = [text.get_window_extent() for text in axes.texts if text.get_text()]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    edges = [box.get_window_extent() for box in boxes if box.zorder > 0]  # without the panels
    assert len(edges) >= 10
    for i, one in enumerate(written):
        assert not any(one.overlaps(other) for other in written[:i])
        assert image.bbox.x0 < one.x0 < one.x1 < image.bbox.x1
        for edge in edges:
            inside = edge.x0 < one.x0 and one.x1 < edge.x1 and edge.y0 < one.y0 and one.y1 < edge.y1
            assert inside or not one.overlaps(edge)
    for i, one in enumerate(edges):
        assert not any(one.overlaps(other) for other in edges[:i])


def test_files_are_the_same_each_time(tmp_path):
    model = xception_flax.create_model('xception', stem='small', width=0.125)
    network = counts.summarise(model, 32)
    for name in ('a.svg', 'b.svg', 'a.png'):
        drawing.draw(model, network, 32, tmp_path / name)
    svg = (tmp_path / 'a.svg').read_text()
    assert '<!-- SeparableConv 88, 3x3 -->' in svg
    assert '<!-- 32x32x3 images -->' in svg
    assert svg == (tmp_path / 'b.svg').read_text()
    image = cv2.imread(str(tmp_path / 'a.png'))
    assert (image[0, 0] == 255).all()  # white, for dark pages too
    assert image.shape[1] > 2000
