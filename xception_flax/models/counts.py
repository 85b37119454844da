"""The layers of a network: shapes, parameters and multiply-adds, with nothing computed."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax import ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A module with its members, for one image; its numbers are the sums of theirs.

    Attributes:
      path: names from the network down, such as 'entry_flow/block1'; '' for the network itself.
      output: shape of what it returns (the first, if several), `(H, W, C)` or `(C,)`.
      parameters: number of trainable ones.
      statistics: number of batch norm's running means and variances.
      macs: multiply-adds of convolutions and dense layers, padding included.
      activation_bytes: size of the layers' outputs.
      members: its submodules, in the order of their calls.
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


def summarise(model: nn.Module, image_size: int) -> Node:
    """Lists the layers of a network by shape evaluation; nothing is allocated or computed.

    The auxiliary classifier, which only training has, is included.

    Args:
      model: the network.
      image_size: side of its images, in pixels.

    Raises:
      ValueError: the network does not take images of that size.
    """
    open_groups: list[list[Node]] = [[]]

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != '__call__':
            return call(*args, **kwargs)
        open_groups.append([])
        result = call(*args, **kwargs)
        members = open_groups.pop()
        node = _node(context.module, args[0], result, members, open_groups[-1])
        open_groups[-1] += [node] if node else []
        return result

    def initialise(x: jax.Array) -> Any:
        # In the reference implementation every layer is a call of its own.
        with nn.intercept_methods(record), ops.lowerings('reference'):
            return model.init(jax.random.key(0), x, train=False)

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    jax.eval_shape(initialise, images)
    return open_groups[0][0]


def _node(
    module: nn.Module, x: Any, result: Any, members: list[Node], before: list[Node]
) -> Node | None:
    """The node of a call of a module; None for one without variables, such as dropout.

    Args:
      module: the module, initialised.
      x: its input.
      result: its output.
      members: nodes of the calls inside.
      before: nodes of the calls before it in its parent.
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
    """The layers of a node, in the order of their calls."""
    if isinstance(node, Layer):
        yield node
    for member in node.members:
        yield from layers(member)
