"""The names and layouts of our arrays in `keras.applications`.

Keras names most layers by their position, and some by a counter that continues from model to model
(`conv2d_7`): only the order identifies these, which are called 'conv#0', 'conv#1', ... here.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xception_flax.base.errors import UserError
from xception_flax.weights.arrays import Arrays

NAME = 'Keras'
# Our unit (a convolution with its batch norm, or a dense layer), and the layer in Keras.
NETWORKS: dict[str, tuple[tuple[str, str], ...]] = {
    'xception': (
        (r'entry_flow/conv(\d)', 'block1_conv{0}'),
        (r'entry_flow/block(\d)/shortcut', '#{0-1}'),
        (r'entry_flow/block(\d)/sepconv(\d)', 'block{0+1}_sepconv{1}'),
        (r'middle_flow/block([1-8])/sepconv(\d)', 'block{0+4}_sepconv{1}'),
        (r'exit_flow/block1/shortcut', '#3'),
        (r'exit_flow/block1/sepconv(\d)', 'block13_sepconv{0}'),
        (r'exit_flow/sepconv(\d)', 'block14_sepconv{0-2}'),
    ),
    'vgg16': ((r'block(\d)_conv(\d)', 'block{0}_conv{1}'), (r'fc(\d)', 'fc{0}')),
    'resnet152': (
        (r'conv1', 'conv1'),
        (r'stage(\d)_block(\d+)/shortcut', 'conv{0+1}_block{1}_0'),
        (r'stage(\d)_block(\d+)/conv(\d)', 'conv{0+1}_block{1}_{2}'),
    ),
    'inception_v3': (),  # all by their order
}
BRANCHES = ('1x1', '5x5', '3x3', '7x7', '7x7x3', '3x3dbl', '7x7dbl')  # in their order


def names(network: str, paths: Iterable[str]) -> dict[str, str]:
    """The name of each array in Keras.

    Args:
      network: one of `NETWORKS`.
      paths: paths of arrays of the network, such as 'entry_flow/conv1/bn/scale'.

    Returns:
      The name of each path, in the form of `canonical`: 'block1_conv1_bn/scale'.

    Raises:
      UserError: Keras has no such network, or its network has no such array.
    """
    if network not in NETWORKS:
        raise UserError(f'Keras has no {network}, only {sorted(NETWORKS)}')
    paths = list(paths)
    ranks = _inception_ranks(paths) if network == 'inception_v3' else {}
    found = {}
    for path in paths:
        name = _name(network, path, ranks)
        if name is None:
            raise UserError(f'{network} of Keras has no array like {path}')
        found[path] = name
    return found


def to_ours(array: np.ndarray, path: str) -> np.ndarray:
    """An array of Keras in our layout: depthwise kernels `[h, w, C, 1]` to `[h, w, 1, C]`."""
    return array.swapaxes(2, 3) if path.endswith('depthwise/kernel') else array


to_theirs = to_ours  # swapping again undoes it


def _name(network: str, path: str, ranks: dict[str, int]) -> str | None:
    *module, role = path.split('/')
    kind = module[-1]
    if module == ['logits']:
        return f'predictions/{role}'
    if kind in ('conv', 'bn', 'depthwise', 'pointwise'):
        module.pop()
    unit = '/'.join(module)
    layer = f'#{ranks[unit]}' if unit in ranks else _apply(NETWORKS[network], unit)
    if layer is None:
        return None
    if layer.startswith('#'):
        return f'{"batch" if kind == "bn" else "conv"}{layer}/{role}'
    if kind in ('depthwise', 'pointwise'):
        return f'{layer}/{kind}'
    if network == 'resnet152':
        return f'{layer}_{kind}/{role}'
    return f'{layer}_bn/{role}' if kind == 'bn' else f'{layer}/{role}'


def _apply(rules: tuple[tuple[str, str], ...], unit: str) -> str | None:
    for pattern, layer in rules:
        if match := re.fullmatch(pattern, unit):
            return re.sub(
                r'\{(\d)([+-]\d)?\}',
                lambda slot: str(int(match[int(slot[1]) + 1]) + int(slot[2] or 0)),
                layer,
            )
    return None


def _inception_ranks(paths: Sequence[str]) -> dict[str, int]:
    """The rank of each convolution of Inception V3 in the order in which Keras makes them."""

    def order(unit: str) -> tuple:
        block, _, branch = unit.partition('/')
        number = int(re.sub(r'\D', '', block))
        if not branch:
            return (0, number)
        match = re.fullmatch(r'branch(\w+?)_(\d)(\w?)', branch)
        if match is None:  # after the pooling
            return (1, number, len(BRANCHES))
        return (1, number, BRANCHES.index(match[1]), match[2], match[3])

    units = {p.rsplit('/', 2)[0] for p in paths if re.match(r'(conv|mixed)\d', p)}
    return {unit: rank for rank, unit in enumerate(sorted(units, key=order))}


def canonical(arrays: Arrays) -> Arrays:
    """Renames the layers of a file that are named by a counter to 'conv#0', 'conv#1', ...

    A single dense layer is the classifier and becomes 'predictions'.
    """
    layers = ranked(name.rpartition('/')[0] for name in arrays)
    return {
        f'{layers[layer]}/{role}': array
        for (layer, _, role), array in ((n.rpartition('/'), a) for n, a in arrays.items())
    }


def ranked(layers: Iterable[str]) -> dict[str, str]:
    """The name that `canonical` gives to each layer of a model."""
    found = {layer: layer for layer in layers}
    counted: dict[str, list[tuple[int, str]]] = {}
    for layer in found:
        if match := re.fullmatch(r'(conv|batch|dense)[a-z_]*(?:2d)?(?:_(\d+))?', layer):
            counted.setdefault(match[1], []).append((int(match[2] or 0), layer))
    for kind, numbered in counted.items():
        for rank, (_, layer) in enumerate(sorted(numbered)):
            found[layer] = f'{kind}#{rank}'
    if len(counted.get('dense', ())) == 1 and 'predictions' not in found:
        found[counted['dense'][0][1]] = 'predictions'
    return found


def recognise(arrays: Arrays) -> tuple[str, dict[str, Any]]:
    """The network that these arrays belong to ('' for none), and its options as far as known."""
    found = {name.rpartition('/')[0] for name in arrays}
    stages: dict[int, int] = {}
    for layer in found:
        if match := re.fullmatch(r'conv(\d)_block(\d+)_3_conv', layer):
            stage, block = int(match[1]), int(match[2])
            stages[stage] = max(block, stages.get(stage, 0))
    options: dict[str, Any] = {}
    if 'predictions/kernel' in arrays:
        options['num_classes'] = arrays['predictions/kernel'].shape[-1]
    if 'block14_sepconv2' in found:
        return 'xception', options
    if 'block5_conv3' in found:
        fc_layers = [arrays[f'fc{i}/kernel'].shape for i in (1, 2, 3) if f'fc{i}/kernel' in arrays]
        if fc_layers:
            options['image_size'] = 32 * math.isqrt(fc_layers[0][0] // 512)
        return 'vgg16', options | {'fc_layers': tuple(width for _, width in fc_layers)}
    if stages:
        return 'resnet152', options | {'stages': tuple(stages[i] for i in sorted(stages))}
    if 'conv#93' in found:
        return 'inception_v3', options
    return '', {}
