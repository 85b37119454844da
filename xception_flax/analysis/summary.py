"""The layers of a network as rows, and its cost compared with regular convolutions."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from xception_flax.models.counts import Layer, Node, layers


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A network compared with the same one with regular instead of separable convolutions.

    Each regular convolution has the kernel size of the depthwise one; layers between depthwise and
    pointwise are left out.

    Attributes:
      convolutions: number of separable convolutions.
      depthwise_macs: multiply-adds of their depthwise halves.
      regular_parameters: parameters of the network with regular convolutions.
      regular_macs: its multiply-adds.
    """

    convolutions: int
    depthwise_macs: int
    regular_parameters: int
    regular_macs: int


def fold(nodes: Sequence[Node]) -> list[list[Node]]:
    """Merges adjacent groups that differ only in their names."""
    folded: list[list[Node]] = []
    for node in nodes:
        last = folded[-1][-1] if folded else None
        if node.members and last and _signature(node) == _signature(last):
            folded[-1].append(node)
        else:
            folded.append([node])
    return folded


def _signature(node: Node) -> list[Layer]:
    return [
        dataclasses.replace(layer, path=layer.path.removeprefix(node.path))
        for layer in layers(node)
    ]


def folded_name(nodes: Sequence[Node]) -> str:
    """The name of merged nodes: 'block1', or '8 x block1-8'."""
    name = nodes[0].path.rpartition('/')[2]
    if len(nodes) == 1:
        return name
    number = re.search(r'\d*$', nodes[-1].path)
    return f'{len(nodes)} x {name}-{number[0] if number else ""}'


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a network's table.

    Attributes:
      name: such as 'entry_flow', 'sepconv1/depthwise', or '8 x block1-8'.
      depth: number of groups around it.
      node: the layer or group, or the first of those merged.
      count: number of nodes merged; the numbers of the line are `count` times the node's.
    """

    name: str
    depth: int
    node: Node
    count: int


def rows(group: Node, depth: int = 0) -> Iterator[Row]:
    """The lines of a network's table: groups of groups with their sums, and all layers."""
    for alike in fold(group.members):
        name, node = folded_name(alike), alike[0]
        if not node.members or any(member.members for member in node.members):
            yield Row(name, depth, node, len(alike))
            yield from rows(node, depth + 1)
        else:  # a convolution with its batch norm, say: no line of its own
            for layer in node.members:
                end = layer.path.rpartition('/')[2]
                yield Row(f'{name}/{end}', depth, layer, len(alike))


def compare_with_regular(network: Node) -> Comparison:
    """Counts the cost of the network with regular convolutions (see `Comparison`)."""
    convolutions = depthwise_macs = 0
    parameters, macs = network.parameters, network.macs
    for depthwise, *between, pointwise in _separable(network):
        kernel = (*depthwise.kernel[:2], depthwise.output[-1], pointwise.output[-1])
        positions = math.prod(pointwise.output[:-1])
        convolutions += 1
        depthwise_macs += depthwise.macs
        parameters += math.prod(kernel) - math.prod(pointwise.kernel)
        parameters -= sum(layer.parameters for layer in (depthwise, *between))
        macs += math.prod(kernel) * positions - depthwise.macs - pointwise.macs
    return Comparison(convolutions, depthwise_macs, parameters, macs)


def _separable(network: Node) -> Iterator[list[Layer]]:
    """The layers of each separable convolution, from depthwise to pointwise."""
    found: list[Layer] = []
    for layer in layers(network):
        if layer.kind == 'depthwise':
            found = []
        if layer.kind == 'depthwise' or found:
            found.append(layer)
        if layer.kind == 'pointwise':
            yield found
            found = []
