"""Draws a network: Xception as its three flows (paper, Figure 5), others as columns of stages."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from xception_flax.analysis.summary import fold, folded_name
from xception_flax.models import counts
from xception_flax.models.counts import Layer, Node
from xception_flax.models.xception import Xception

# Lengths in inches; y grows downwards.
BOX = 2.0  # width of a box
LINE = 0.16  # height of a line of text
PADDING = 0.1  # added to the lines of a box
GAP = 0.15  # between boxes
FORK = 0.14  # from the start of a shortcut to the next box
LANE = 1.35  # width of a shortcut with a box
IDENTITY = 0.3  # width of a shortcut without a box
MARGIN = 0.2  # in a panel, and around it
SUM = 0.095  # radius of a '+'

FONT = 9  # points
INK, LINES, PANEL = '#24292f', '#57606a', '#f6f8fa'
# Face and edge of each kind of box.
COLOURS = {
    'conv': ('#d6e6f5', '#4c86b8'),
    'sepconv': ('#fde5cb', '#cf8a3a'),
    'relu': ('#ffffff', '#aab2bb'),
    'pool': ('#e4dff3', '#8172b3'),
    'head': ('#d8efdb', '#5a9e68'),
}
# Text between depthwise and pointwise.
INTERMEDIATE = {
    'none': '',
    'relu': 'ReLU',
    'elu': 'ELU',
    'bn': 'BN',
    'bn_relu': 'BN, ReLU',
    'bn_elu': 'BN, ELU',
}


@dataclasses.dataclass(frozen=True)
class Box:
    """One operation: its text, a second line in small print, and its kind, a key of `COLOURS`."""

    text: str
    kind: str
    detail: str = ''


RELU = Box('ReLU', 'relu')


@dataclasses.dataclass(frozen=True)
class Block:
    """Boxes with a shortcut around them, and the sum of both.

    Attributes:
      boxes: from top to bottom.
      projection: the box on the shortcut; None for an identity.
      chained: whether the shortcut starts at the shortcut of the previous block.
    """

    boxes: tuple[Box, ...]
    projection: Box | None
    chained: bool = False


@dataclasses.dataclass(frozen=True)
class Flow:
    """One column.

    Attributes:
      title: title above the column.
      source: name of the input, such as '299x299x3 images'.
      parts: boxes and blocks in the panel.
      result: name of the output.
      head: boxes below the output.
      note: text at the end.
    """

    title: str
    source: str
    parts: tuple[Box | Block, ...]
    result: str
    head: tuple[Box, ...] = ()
    note: str = ''


def draw(model: nn.Module, network: Node, image_size: int, path: pathlib.Path) -> None:
    """Draws a network, with its real options and sizes, to a file.

    Args:
      model: the network.
      network: its summary.
      image_size: side of its images, in pixels.
      path: output file; its suffix tells the format, such as .svg or .png.
    """
    images = f'{image_size}x{image_size}x3 images'
    caption = f'{network.parameters:,} parameters\n{network.macs:,} multiply-adds'
    if any(layer.kind == 'batch_norm' for layer in counts.layers(network)):
        caption = f'Batch normalisation follows each\nconvolution; it is not drawn.\n\n{caption}'
    if isinstance(model, Xception):
        image = figure(xception_flows(model, network, images), caption)
    else:
        image = figure(stage_flows(model, network, images), caption)
    metadata: dict[str, Any] = {'Date': None} if path.suffix == '.svg' else {}
    with matplotlib.rc_context({'svg.hashsalt': 'xception_flax'}):  # the same bytes each time
        image.savefig(path, dpi=200, metadata=metadata)


def xception_flows(model: Xception, network: Node, images: str) -> list[Flow]:
    """Xception's columns: entry flow, middle flow (if it has blocks) and exit flow.

    Args:
      model: the network.
      network: its summary.
      images: name of the input.
    """
    outputs = {node.path: node.output for node in _walk(network)}
    layers = {layer.path: layer for layer in counts.layers(network)}
    article = model.variant == 'article'
    between = INTERMEDIATE[model.intermediate]

    def conv(path: str) -> Box:
        layer = layers[f'{path}/conv']
        height, width, _, features = layer.kernel
        return Box(f'Conv {features}, {height}x{width}{_stride(layer.strides)}', 'conv')

    def sepconv(path: str) -> Box:
        detail = f'depthwise, {between}, pointwise' if between else ''
        return Box(f'SeparableConv {outputs[path][-1]}, 3x3', 'sepconv', detail)

    def downsampling(path: str, leading_relu: bool, chained: bool) -> tuple[Box | Block, ...]:
        strides = math.ceil(outputs[f'{path}/sepconv2/pointwise'][0] / outputs[path][0])
        boxes = (
            *([RELU] if leading_relu else []),
            sepconv(f'{path}/sepconv1'),
            RELU,
            sepconv(f'{path}/sepconv2'),
            Box(f'MaxPooling 3x3{_stride(strides)}', 'pool'),
        )
        if not model.residual:
            return boxes
        projection = conv(f'{path}/shortcut')
        narrow = dataclasses.replace(projection, text=projection.text.replace(', s', '\ns'))
        return (Block(boxes, narrow, chained),)

    entry = (
        conv('entry_flow/conv1'),
        RELU,
        conv('entry_flow/conv2'),
        RELU,
        *downsampling('entry_flow/block1', leading_relu=False, chained=False),
        *downsampling('entry_flow/block2', leading_relu=True, chained=article),
        *downsampling('entry_flow/block3', leading_relu=True, chained=article),
    )
    maps = f'{_join(outputs["entry_flow"])} feature maps'
    flows = [Flow('Entry flow', images, entry, maps)]

    if model.middle_repeats:
        convs = [sepconv(f'middle_flow/block1/sepconv{i}') for i in (1, 2, 3)]
        boxes = (*(box for each in convs for box in (RELU, each)), *([RELU] if article else []))
        parts: tuple[Box | Block, ...] = (Block(boxes, None),) if model.residual else boxes
        note = f'Repeated {model.middle_repeats} times' if model.middle_repeats > 1 else ''
        flows.append(Flow('Middle flow', maps, parts, maps, note=note))

    exits = (
        *downsampling('exit_flow/block1', leading_relu=True, chained=False),
        sepconv('exit_flow/sepconv3'),
        RELU,
        sepconv('exit_flow/sepconv4'),
        *([] if article else [RELU]),
        Box('GlobalAveragePooling', 'pool'),
    )
    connected = [Box(f'Fully connected {features}', 'head') for features in model.fc_layers]
    head = (
        *(box for each in connected for box in (each, RELU)),
        *([Box(f'Dropout {model.dropout:g}', 'relu')] if model.dropout else []),
        Box('Logistic regression', 'head', f'{model.num_classes} classes'),
    )
    vectors = f'{outputs["exit_flow"][-1]}-dimensional vectors'
    return [*flows, Flow('Exit flow', maps, exits, vectors, head)]


def stage_flows(model: nn.Module, network: Node, images: str) -> list[Flow]:
    """The stages of any network, in one column, or in one per flow if it has flows.

    Args:
      model: the network.
      network: its summary.
      images: name of the input.
    """
    trunk = [node for node in network.members if len(node.output) == 3]
    head = [node for node in network.members if isinstance(node, Layer) and node not in trunk]
    columns: dict[str, Sequence[Node]] = {type(model).__name__: trunk}
    if all(_has_blocks(node) for node in trunk):
        columns = {node.path.replace('_', ' ').capitalize(): node.members for node in trunk}
    flows = []
    for title, nodes in columns.items():
        maps = f'{_join(nodes[-1].output)} feature maps'
        flows.append(Flow(title, images, _stages(nodes), maps))
        images = maps
    flows[-1] = dataclasses.replace(flows[-1], head=_stages(head))
    return flows


def _has_blocks(node: Node) -> bool:
    """Whether a node is made of groups of groups."""
    return any(inner.members for member in node.members for inner in member.members)


def _stages(nodes: Sequence[Node]) -> tuple[Box, ...]:
    """A box per node except batch norm; equal neighbours share one."""
    return tuple(
        Box(
            folded_name(alike),
            'conv' if len(alike[0].output) == 3 else 'head',
            _join(alike[0].output),
        )
        for alike in fold(nodes)
        if getattr(alike[0], 'kind', None) != 'batch_norm'
    )


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for member in node.members:
        yield from _walk(member)


def _join(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))


def _stride(strides: int) -> str:
    return f', stride={strides}x{strides}' if strides > 1 else ''


def figure(flows: Sequence[Flow], caption: str) -> Figure:
    """Draws columns side by side, and the caption below the shortest.

    Args:
      flows: the columns.
      caption: lines of text.
    """
    image = Figure(facecolor='white')
    axes = image.add_axes((0, 0, 1, 1))
    axes.axis('off')
    columns: list[Column] = []
    left = MARGIN
    for flow in flows:
        columns.append(Column(axes, left, flow))
        left += columns[-1].width + MARGIN
    shortest = min(columns, key=lambda column: column.y)
    room = 1.3 * LINE * (caption.count('\n') + 1)
    height = max(shortest.y + MARGIN + room, *(column.y for column in columns)) + MARGIN
    axes.text(
        shortest.left, height - MARGIN, caption, fontsize=FONT - 1, color=LINES, va='bottom',
        linespacing=1.4,
    )  # fmt: skip
    axes.set(xlim=(0, left), ylim=(height, 0))
    image.set_size_inches(left, height)
    return image


class Column:
    """Draws one flow, from top to bottom.

    Attributes:
      left: left edge.
      width: width of the column.
      y: lower end of what is drawn.
    """

    def __init__(self, axes: Axes, left: float, flow: Flow):
        blocks = [part for part in flow.parts if isinstance(part, Block)]
        lane = LANE if any(block.projection for block in blocks) else IDENTITY if blocks else 0
        self.axes, self.left = axes, left
        self.width = MARGIN + lane + BOX + MARGIN
        self.centre = left + self.width - MARGIN - BOX / 2
        self.lane = left + MARGIN + (0 if lane == IDENTITY else (lane - MARGIN) / 2)
        self.last_sum = 0.0
        self.y = MARGIN

        self._label(flow.title, 0.34, fontsize=13, fontweight='bold')
        self._label(flow.source, 0.24, fontsize=FONT)
        top = self.y + MARGIN / 2
        self._parts(flow.parts, gap=2 * MARGIN)
        height = self.y + MARGIN - top
        self._rounded(left, top, self.width, height, PANEL, '#d0d7de', zorder=0)
        self._down(1.5 * MARGIN)
        self._label(flow.result, 0.24, fontsize=FONT)
        self._parts(flow.head, gap=GAP)
        if flow.note:
            self._label(flow.note, 0.34, fontsize=FONT + 1, fontweight='bold')

    def _parts(self, parts: Sequence[Box | Block], gap: float) -> None:
        """Draws boxes and blocks, the first of them `gap` below `y`."""
        for part in parts:
            if isinstance(part, Block):
                self._block(part, max(gap, 2 * FORK))
            else:
                self._box(part, gap)
            gap = GAP

    def _block(self, block: Block, gap: float) -> None:
        fork = self.y + gap - FORK
        for box in block.boxes:
            self._box(box, gap)
            gap = GAP
        self._down(GAP)
        total = self.y + SUM
        self.y += 2 * SUM
        self.axes.add_patch(Circle((self.centre, total), SUM, fc='white', ec=LINES, zorder=3))
        for dx, dy in ((SUM / 2, 0), (0, SUM / 2)):
            xs, ys = (self.centre - dx, self.centre + dx), (total - dy, total + dy)
            self.axes.plot(xs, ys, color=LINES, linewidth=1, zorder=4)

        start = [(self.lane, self.last_sum)]
        if not block.chained:
            start = [(self.centre, fork), (self.lane, fork)]
        self._arrow(*start, (self.lane, total), (self.centre - SUM, total))
        if block.projection:
            width = 2 * (self.lane - self.left - MARGIN)
            self._rectangle(block.projection, self.lane, (start[-1][1] + total) / 2, width)
        self.last_sum = total

    def _box(self, box: Box, gap: float) -> None:
        self._down(gap)
        self._rectangle(box, self.centre, self.y + _height(box) / 2, BOX)
        self.y += _height(box)

    def _rectangle(self, box: Box, x: float, y: float, width: float) -> None:
        """Draws a box around the point (x, y)."""
        height, (face, edge) = _height(box), COLOURS[box.kind]
        self._rounded(x - width / 2, y - height / 2, width, height, face, edge, zorder=3)
        up = LINE / 2 if box.detail else 0
        self._text(box.text, x, y - up, fontsize=FONT)
        self._text(box.detail, x, y + up, fontsize=FONT - 1.5, color=LINES)

    def _rounded(
        self, x: float, y: float, width: float, height: float, face: str, edge: str, zorder: int
    ) -> None:
        style = 'round,pad=0,rounding_size=0.06'
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, zorder=zorder
            )
        )

    def _label(self, text: str, height: float, **look: Any) -> None:
        """Writes a line, centred on the boxes."""
        self._text(text, self.centre, self.y + height / 2, **look)
        self.y += height

    def _text(self, text: str, x: float, y: float, **look: Any) -> None:
        self.axes.text(x, y, text, ha='center', va='center', zorder=5, **{'color': INK, **look})

    def _down(self, length: float) -> None:
        """Draws an arrow downwards."""
        self._arrow((self.centre, self.y), (self.centre, self.y + length))
        self.y += length

    def _arrow(self, *points: tuple[float, float]) -> None:
        """Draws a line through the points, with a head at the last."""
        self.axes.add_patch(
            FancyArrowPatch(
                path=Path(points),
                arrowstyle='-|>',
                mutation_scale=7,
                color=LINES,
                linewidth=1,
                joinstyle='round',
                zorder=2,
            )
        )


def _height(box: Box) -> float:
    return PADDING + LINE * (1 + box.text.count('\n') + bool(box.detail))
