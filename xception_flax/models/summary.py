"""What a network is made of: shapes, parameters and work of each layer, with nothing computed."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A module with what it is made of, for one picture; its numbers are the sums of theirs.

    Attributes:
      path: names from the network down, such as 'entry_flow/block1'; '' for the network itself.
      output: shape of what it returns (the first, if several), `(H, W, C)` or `(C,)`.
      parameters: number of trainable ones.
      statistics: number of batch norm's running means and variances.
      macs: multiply-adds of convolutions and dense layers, products with the padding included.
      activation_bytes: size of the layers' outputs.
      members: the modules in it, in the order in which they are called.
    """

    path: str
    output: tuple[int, ...]
    parameters: int
    statistics: int
    macs: int
    activation_bytes: int
    members: tuple['Node', ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer(Node):
    """A module that has variables of its own.

    Attributes:
      kind: 'conv', 'depthwise', 'pointwise' (1x1, after a depthwise), 'dense', 'batch_norm' or
        'other' (LeNet-5's weighted averages).
      kernel: shape of the kernel, `(h, w, C_in / groups, C_out)` or `(C_in, C_out)`; empty for
        none.
      strides: stride in both directions.
    """

    kind: str
    kernel: tuple[int, ...]
    strides: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A network beside the same one with a regular convolution in place of each separable one.

    The regular convolution has the depthwise one's kernel size, and what stands between depthwise
    and pointwise is left out.

    Attributes:
      convolutions: number of separable convolutions.
      depthwise_macs: multiply-adds of their depthwise halves.
      regular_parameters: of the network with regular convolutions.
      regular_macs: likewise.
    """

    convolutions: int
    depthwise_macs: int
    regular_parameters: int
    regular_macs: int


def summarise(model: nn.Module, image_size: int) -> Node:
    """Takes a network apart by shape evaluation; nothing is allocated or computed.

    An auxiliary classifier, which only training has, counts.

    Args:
      model: the network.
      image_size: side of its pictures, in pixels.

    Raises:
      ValueError: the network does not take pictures of that size.
    """
    open_groups: list[list[Node]] = [[]]

    def record(call, args, kwargs, context):
        if context.method_name != '__call__':
            return call(*args, **kwargs)
        open_groups.append([])
        result = call(*args, **kwargs)
        members = open_groups.pop()
        node = _node(context.module, args[0], result, members, open_groups[-1])
        open_groups[-1] += [node] if node else []
        return result

    def initialise(x):
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), x, train=False)

    pictures = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    jax.eval_shape(initialise, pictures)
    return open_groups[0][0]


def _node(
    module: nn.Module, x: Any, result: Any, members: list[Node], before: list[Node]
) -> Node | None:
    """What a call of a module becomes; None for one without any variables, such as dropout.

    Args:
      module: the module, its variables made.
      x: its input.
      result: its output.
      members: what it called.
      before: what its parent had called.
    """
    path, y = '/'.join(module.path), jax.tree.leaves(result)[0]
    parameters, statistics = (
        {k: v for k, v in module.variables.get(name, {}).items() if not isinstance(v, Mapping)}
        for name in ('params', 'batch_stats')
    )
    if parameters or statistics:
        kernel = tuple(parameters['kernel'].shape) if 'kernel' in parameters else ()
        strides = getattr(module, 'strides', None) or 1
        layer = Layer(
            path=path,
            output=y.shape[1:],
            parameters=sum(v.size for v in parameters.values()),
            statistics=sum(v.size for v in statistics.values()),
            macs=math.prod(kernel) * math.prod(y.shape[1:-1]) if kernel else 0,
            activation_bytes=y.size * y.dtype.itemsize,
            kind='batch_norm' if statistics else _kind(kernel, x.shape[-1], before),
            kernel=kernel,
            strides=strides if isinstance(strides, int) else strides[0],
        )
        if not members:
            return layer
        members = [*members, layer]
    if not members:
        return None
    return Node(
        path=path,
        output=y.shape[1:],
        parameters=sum(member.parameters for member in members),
        statistics=sum(member.statistics for member in members),
        macs=sum(member.macs for member in members),
        activation_bytes=sum(member.activation_bytes for member in members),
        members=tuple(members),
    )


def _kind(kernel: tuple[int, ...], channels: int, before: list[Node]) -> str:
    if len(kernel) == 2:
        return 'dense'
    if len(kernel) != 4:
        return 'other'
    if kernel[2] == 1 and kernel[3] == channels > 1:
        return 'depthwise'
    halves = [node.kind for node in before if isinstance(node, Layer) and node.kernel]
    return 'pointwise' if kernel[:2] == (1, 1) and halves[-1:] == ['depthwise'] else 'conv'


def layers(node: Node) -> Iterator[Layer]:
    """The layers of a node, in the order in which they are called."""
    if isinstance(node, Layer):
        yield node
    for member in node.members:
        yield from layers(member)


def fold(nodes: Sequence[Node]) -> list[list[Node]]:
    """Puts neighbours together that are groups and differ in nothing but their names."""
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
    """What to call nodes that were put together: 'block1', or '8 x block1-8'."""
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
      depth: number of groups that it stands in.
      node: the layer or group; where several alike are put together, the first of them.
      count: how many they are; the line's numbers are `count` times the node's.
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
    """Counts what the network would have with regular convolutions (see `Comparison`)."""
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
    """Each separable convolution's layers, from its depthwise one to its pointwise one."""
    found: list[Layer] = []
    for layer in layers(network):
        if layer.kind == 'depthwise':
            found = []
        if layer.kind == 'depthwise' or found:
            found.append(layer)
        if layer.kind == 'pointwise':
            yield found
            found = []
