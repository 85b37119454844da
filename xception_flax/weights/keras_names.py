"""The names and layouts of our arrays in `keras.applications`.

Keras names most layers by their position in the network, and some by a counter that continues from
model to model (`conv2d_7`): only their order in the model identifies these, which are called
'conv#0', 'conv#1', ... here. In some files it identifies all layers (`keras_order`).
"""

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from xception_flax.base.errors import UserError
from xception_flax.weights import keras_order
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
    'vgg16': ((r'block(\d)_conv(\d)', 'block{0}_conv{1}'),),
    'resnet152': (
        (r'conv1', 'conv1'),
        (r'stage(\d)_block(\d+)/shortcut', 'conv{0+1}_block{1}_0'),
        (r'stage(\d)_block(\d+)/conv(\d)', 'conv{0+1}_block{1}_{2}'),
    ),
    'inception_v3': (),  # all by their order
}
# Layers by which `recognise` tells the networks, after `canonical`.
SIGNS = (
    'block14_sepconv2 or 34 separable convolutions', 'block5_conv3 or 13 convolutions',
    'conv2_block1_3_conv or 53, 104 or 155 convolutions', '94 convolutions',
)  # fmt: skip
# Arrays of a trunk, whatever its network.
TRUNK = re.compile(r'(block\d+_\w+|conv\d_\w+)/')
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


def rank(path: str, ours: int) -> int:
    """The number of dimensions in Keras of an array that has `ours` here."""
    return ours


def to_ours(array: np.ndarray, path: str) -> np.ndarray:
    """An array of Keras in our layout: depthwise kernels `[h, w, C, 1]` to `[h, w, 1, C]`."""
    return array.swapaxes(2, 3) if path.endswith('depthwise/kernel') else array


to_theirs = to_ours  # swapping again undoes it


def _name(network: str, path: str, ranks: dict[str, int]) -> str | None:
    *module, role = path.split('/')
    kind = module[-1]
    if module == ['logits']:
        return f'predictions/{role}'
    if re.fullmatch(r'fc\d', unit := '/'.join(module)):
        return f'{unit}/{role}'
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


def _inception_ranks(paths: Iterable[str]) -> dict[str, int]:
    """The rank of each convolution of Inception V3 in the order of Keras's model.

    Keras sorts layers by their distance from the output, and then by the order of the branches.
    """
    units = {p.rsplit('/', 2)[0] for p in paths if re.match(r'(conv|mixed)\d', p)}
    lengths: dict[tuple[str, str], int] = {}  # convolutions of a branch
    for unit in units:
        if found := _BRANCH.fullmatch(unit):
            branch = found['block'], found['branch']
            lengths[branch] = max(lengths.get(branch, 0), int(found['number']))

    def order(unit: str) -> tuple:
        block, _, branch = unit.partition('/')
        number = int(re.sub(r'\D', '', block))
        if not branch:
            return (0, number)
        match = _BRANCH.fullmatch(unit)
        if match is None:  # after the pooling
            return (1, number, -3, len(BRANCHES))
        length = lengths[block, match['branch']]
        # A unit is three layers. Halves '2a' and '2b' meet before the block does.
        halves = f'{block}/branch{match["branch"]}_{length}a' in units
        distance = 3 * (length - int(match['number']) + 1) + halves
        return (1, number, -distance, BRANCHES.index(match['branch']), match['half'])

    return {unit: rank for rank, unit in enumerate(sorted(units, key=order))}


_BRANCH = re.compile(r'(?P<block>mixed\d+)/branch(?P<branch>\w+?)_(?P<number>\d)(?P<half>\w?)')


def canonical(arrays: Arrays) -> Arrays:
    """Renames the layers of a file so that `names` has them.

    Those that are named by a counter become 'conv#0', 'conv#1', ...; if the others tell nothing,
    all are renamed by their order. Dense layers become 'fc1', ... and 'predictions' if they follow
    one another.

    Args:
      arrays: in the order of the model.
    """
    found = _renamed(arrays, ranked(keras_order.layers(arrays)))
    if not recognise(found)[0]:
        found = _renamed(arrays, keras_order.names(arrays))
    return _renamed(found, _head(found))


def ranked(layers: Iterable[str]) -> dict[str, str]:
    """The name that `canonical` gives to each layer of a model, from their names in order."""
    found = {}
    counts = {'conv': itertools.count(), 'batch': itertools.count()}
    for layer in layers:
        match = re.fullmatch(r'(conv|batch)[a-z_]*(?:2d)?(?:_\d+)?', layer)
        found[layer] = f'{match[1]}#{next(counts[match[1]])}' if match else layer
    return found


def _renamed(arrays: Arrays, layers: dict[str, str]) -> Arrays:
    split = ((name.rpartition('/'), array) for name, array in arrays.items())
    return {f'{layers.get(layer, layer)}/{role}': array for (layer, _, role), array in split}


def _head(arrays: Arrays) -> dict[str, str]:
    """Names of dense layers: each takes what the one before gives, and the last one classifies."""
    kernels = {name.rpartition('/')[0]: a for name, a in arrays.items() if name.endswith('/kernel')}
    dense = {layer: kernel.shape for layer, kernel in kernels.items() if kernel.ndim == 2}
    if len(dense) > 4:
        return {}
    for order in itertools.permutations(dense):
        if all(dense[a][1] == dense[b][0] for a, b in itertools.pairwise(order)):
            numbered = [f'fc{i}' for i in range(1, len(order))]
            return dict(zip(order, [*numbered, 'predictions'], strict=bool(order)))
    return {}


def recognise(arrays: Arrays) -> tuple[str, dict[str, Any]]:
    """The network that `canonical` arrays belong to ('' for none), and its options, if known."""
    found = {name.rpartition('/')[0] for name in arrays}
    stages: dict[int, int] = {}
    for layer in found:
        if match := re.fullmatch(r'conv(\d)_block(\d+)_3_conv', layer):
            stage, block = int(match[1]), int(match[2])
            stages[stage] = max(block, stages.get(stage, 0))
    hidden = [arrays[f'fc{i}/kernel'].shape for i in range(1, 5) if f'fc{i}/kernel' in arrays]
    options: dict[str, Any] = {'fc_layers': tuple(width for _, width in hidden)}
    if 'predictions/kernel' in arrays:
        options['num_classes'] = arrays['predictions/kernel'].shape[-1]
    if 'block14_sepconv2' in found:
        return 'xception', options
    if 'block5_conv3' in found:
        first = 'fc1/kernel' if 'fc1/kernel' in arrays else 'predictions/kernel'
        if first in arrays:  # it takes all features, of 512 channels
            side = math.isqrt(arrays[first].shape[0] // 512)
            if 512 * side**2 == arrays[first].shape[0]:
                options['image_size'] = 32 * side
        return 'vgg16', options
    if stages:
        return 'resnet152', options | {'stages': tuple(stages[i] for i in sorted(stages))}
    if 'conv#93' in found:
        return 'inception_v3', options
    return '', {}
