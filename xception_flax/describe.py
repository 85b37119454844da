"""Describes a network: its layers, what they cost, and a drawing.

  python -m xception_flax.describe --config=configs/imagenet.py
  python -m xception_flax.describe --config=configs/imagenet.py --config.xception.residual=False
  python -m xception_flax.describe --config=configs/imagenet.py --save=a.svg --save=a.png
  python -m xception_flax.describe --workdir=/tmp/digits --json

The network is that of a config, of a run (`--workdir`) or of a file of weights (`--weights`).
Nothing is computed: it takes seconds, and no accelerator.
"""

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

flags.adopt_module_key_flags(program)
flags.DEFINE_string('weights', None, "A file of weights, Keras's or timm's, whose network to take.")
flags.DEFINE_multi_string('save', [], 'Draw it to this .svg or .png; may be given several times.')
flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')

EXAMPLE = (
    'A 3x3 convolution from 3 to 64 channels has 3x3x3x64 = 1,728 weights; '
    'a separable one 3x3x3 + 3x64 = 219.'
)


def main() -> None:
    """Describes by the flags."""
    values = flags.FLAGS
    for path in values.save:
        if pathlib.Path(path).suffix not in ('.png', '.svg'):
            raise UserError(f'--save={path} ends neither in .svg nor in .png')

    import jax  # after the flags: their mistakes are told at once

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to those who compute
    config = network_config(values.config, values.workdir, values.weights)
    jax.config.update('jax_enable_x64', config.dtype == 'float64')

    from xception_flax.config.checks import build_model, check_values
    from xception_flax.models import drawing, summary

    check_values(config)
    model = build_model(config, config.dataset.num_classes)
    network = summary.summarise(model, config.image_size)
    comparison = summary.compare_with_regular(network)
    if values.json:
        print(json.dumps(as_dict(config, network, comparison)))
    else:
        print_tables(config, network, comparison)
    for path in values.save:
        drawing.draw(model, network, config.image_size, pathlib.Path(path))
        if not values.json:
            print(f'drawn: {path}')


def network_config(config, workdir: str | None, weights: str | None):
    """The config that the network is built from, with its number of classes.

    Args:
      config: of `--config`, if it was given.
      workdir: of a run.
      weights: a file of weights.

    Raises:
      UserError: none of the three is given, or several, or what is given is not there.
    """
    if sum(bool(source) for source in (config, workdir, weights)) != 1:
        raise UserError('give one of --config, --workdir and --weights; see --help')
    if weights:
        from xception_flax.pretrained import load_pretrained

        return load_pretrained(weights)[2]
    if workdir:
        from xception_flax.config import reading

        return reading.from_json(pathlib.Path(workdir).expanduser() / 'config.json')
    from xception_flax.data import sources

    config.dataset.num_classes = sources.num_classes(config)
    return config


def as_dict(config, network, comparison) -> dict[str, Any]:
    """What `--json` prints.

    Args:
      config: of the network.
      network: its summary.
      comparison: its `summary.Comparison`.
    """
    from xception_flax.models import summary

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
        'separable': dataclasses.asdict(comparison),
        'layers': [layer_dict(layer, network.macs) for layer in summary.layers(network)],
    }


def layer_dict(layer, macs: int) -> dict[str, Any]:
    """A layer as JSON takes it, with its share of the network's `macs`."""
    values = {**dataclasses.asdict(layer), 'share': layer.macs / macs}
    del values['members']  # which a layer has none of
    return values


def print_tables(config, network, comparison) -> None:
    """Prints the layers, the totals, and the comparison with regular convolutions.

    Args:
      config: of the network.
      network: its summary.
      comparison: its `summary.Comparison`.
    """
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # a narrow terminal wraps; no digit is cut off
    size, classes = config.image_size, config.dataset.num_classes
    console.print(f'{config.model} for pictures of {size}x{size}x3 and {classes} classes\n')
    console.print(layer_table(network))
    console.print(
        "\nA line with 'N x' has the sum of N that are alike; under it stands one of them.\n"
    )
    console.print(totals_table(network, config.dtype))
    if comparison.convolutions:
        console.print()
        console.print(comparison_table(network, comparison))
        console.print(f'\n{EXAMPLE}')


def layer_table(network) -> Table:
    """All layers, and sub-totals of the groups that they form."""
    from xception_flax.models import summary

    table = new_table(['layer', 'kernel'], ['output', 'parameters', 'MACs', 'share'])
    for row in summary.rows(network):
        layer = row.node if isinstance(row.node, summary.Layer) else None
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


def kernel(layer) -> str:
    """The kernel of a convolution, such as '3x3 /2' with stride 2."""
    if len(layer.kernel) != 4:
        return ''
    stride = f' /{layer.strides}' if layer.strides > 1 else ''
    return f'{layer.kernel[0]}x{layer.kernel[1]}{stride}'


def totals_table(network, dtype: str) -> Table:
    """The sums of the whole network."""
    table = new_table(['total'], [''])
    table.add_row('trainable parameters', f'{network.parameters:,}')
    table.add_row('statistics (means and variances of batch norm)', f'{network.statistics:,}')
    table.add_row('MACs (multiply-adds of convolutions and dense layers)', f'{network.macs:,}')
    table.add_row(
        f"activations a picture, in bytes (all layers' outputs, {dtype})",
        f'{network.activation_bytes:,}',
    )
    return table


def comparison_table(network, comparison) -> Table:
    """The network beside the same with regular convolutions."""
    convolutions = f'{comparison.convolutions} convolutions'
    table = new_table([convolutions], ['separable', 'regular', 'ratio'])
    for name, ours, regular in (
        ('parameters', network.parameters, comparison.regular_parameters),
        ('MACs', network.macs, comparison.regular_macs),
    ):
        table.add_row(name, f'{ours:,}', f'{regular:,}', f'{regular / ours:.1f}')
    share = comparison.depthwise_macs / network.macs
    table.add_row(f'depthwise MACs ({share:.1%})', f'{comparison.depthwise_macs:,}', '', '')
    return table


def new_table(texts: list[str], numbers: list[str]) -> Table:
    """An empty table with these columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in texts:
        table.add_column(title, no_wrap=True)
    for title in numbers:
        table.add_column(title, no_wrap=True, justify='right')
    return table


if __name__ == '__main__':
    program.run(main, needs=(), alone=True)
