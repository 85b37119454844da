"""A network as tables on a terminal, and as JSON."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from xception_flax.analysis.summary import Comparison, compare_with_regular, rows
from xception_flax.models.counts import Layer, Node, layers

EXAMPLE = (
    'A 3x3 convolution from 3 to 64 channels has 3x3x3x64 = 1,728 weights; '
    'a separable one 3x3x3 + 3x64 = 219.'
)


def as_dict(config: ConfigDict, network: Node) -> dict[str, Any]:
    """A network as JSON."""
    return {
        'model': config.model,
        'options': config[config.model].to_dict(),
        'dtype': config.dtype,
        'input': [config.image_size, config.image_size, 3],
        'num_classes': config.dataset.num_classes,
        'parameters': network.parameters,
        'statistics': network.statistics,
        'macs': network.macs,
        'activation_bytes': network.activation_bytes,
        'separable': dataclasses.asdict(compare_with_regular(network)),
        'layers': [_layer_dict(layer, network.macs) for layer in layers(network)],
    }


def _layer_dict(layer: Layer, macs: int) -> dict[str, Any]:
    """A layer as JSON, with its fraction of the network's `macs`."""
    values = {**dataclasses.asdict(layer), 'share': layer.macs / macs}
    del values['members']  # a layer has none
    return values


def print_network(config: ConfigDict, network: Node) -> None:
    """Prints the layers, the totals, and the comparison with regular convolutions."""
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # a narrow terminal wraps; no digit is cut off
    size, classes = config.image_size, config.dataset.num_classes
    comparison = compare_with_regular(network)
    console.print(f'{config.model} for images of {size}x{size}x3 and {classes} classes\n')
    console.print(layer_table(network))
    console.print("\nA row 'N x' is the sum of N equal blocks; one of them follows it.\n")
    console.print(totals_table(network, config.dtype))
    if comparison.convolutions:
        console.print()
        console.print(comparison_table(network, comparison))
        console.print(f'\n{EXAMPLE}')


def layer_table(network: Node) -> Table:
    """All layers, and sums over the groups that they form."""
    table = new_table(['layer', 'kernel'], ['output', 'parameters', 'MACs', 'fraction'])
    for row in rows(network):
        layer = row.node if isinstance(row.node, Layer) else None
        macs = row.count * row.node.macs
        table.add_row(
            '  ' * row.depth + row.name,
            kernel(layer) if layer else '',
            'x'.join(map(str, row.node.output)),
            f'{row.count * row.node.parameters:,}',
            f'{macs:,}' if macs else '',
            f'{macs / network.macs:.1%}' if macs else '',
            style=None if layer else 'bold',
        )
    return table


def kernel(layer: Layer) -> str:
    """The kernel of a convolution, such as '3x3 /2' with stride 2."""
    if len(layer.kernel) != 4:
        return ''
    stride = f' /{layer.strides}' if layer.strides > 1 else ''
    return f'{layer.kernel[0]}x{layer.kernel[1]}{stride}'


def totals_table(network: Node, dtype: str) -> Table:
    """The sums over the whole network."""
    table = new_table(['total'], [''])
    table.add_row('trainable parameters', f'{network.parameters:,}')
    table.add_row('statistics (means and variances of batch norm)', f'{network.statistics:,}')
    table.add_row('MACs (multiply-adds of convolutions and dense layers)', f'{network.macs:,}')
    table.add_row(
        f'activations per image, in bytes (outputs of all layers, {dtype})',
        f'{network.activation_bytes:,}',
    )
    return table


def comparison_table(network: Node, comparison: Comparison) -> Table:
    """The network beside the same one with regular convolutions."""
    convolutions = f'{comparison.convolutions} convolutions'
    table = new_table([convolutions], ['separable', 'regular', 'ratio'])
    for name, ours, regular in (
        ('parameters', network.parameters, comparison.regular_parameters),
        ('MACs', network.macs, comparison.regular_macs),
    ):
        table.add_row(name, f'{ours:,}', f'{regular:,}', f'{regular / ours:.1f}')
    fraction = comparison.depthwise_macs / network.macs
    table.add_row(f'depthwise MACs ({fraction:.1%})', f'{comparison.depthwise_macs:,}', '', '')
    return table


def new_table(texts: list[str], numbers: list[str]) -> Table:
    """An empty table with these columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in texts:
        table.add_column(title, no_wrap=True)
    for title in numbers:
        table.add_column(title, no_wrap=True, justify='right')
    return table
