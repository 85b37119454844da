"""The names and layouts that timm (PyTorch Image Models) has for our arrays.

A path such as 'entry_flow/block1/sepconv1/depthwise/kernel' leads to an array of the collection
'params' or 'batch_stats'; no path is in both. Every path has one name, and no name two paths.
timm's `num_batches_tracked`, which nothing reads, has no counterpart.
"""

import re
from collections.abc import Iterable
from typing import Any

from xception_flax.models import vgg16
from xception_flax.runtime.errors import UserError

# Our name of a network: timm's, and the options that make our graph timm's.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    'xception': ('legacy_xception', {'variant': 'timm', 'bn_epsilon': 1e-5}),
    'xception41': ('xception41', {}),
    'xception65': ('xception65', {}),
    'xception71': ('xception71', {}),
    'inception_v3': ('inception_v3', {'variant': 'timm'}),
    'vgg16': ('vgg16', {}),
    'resnet152': ('resnet152', {'variant': 'timm', 'bn_epsilon': 1e-5}),
}

_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


def timm_names(model_name: str, paths: Iterable[str]) -> dict[str, str]:
    """The name that timm has for each array.

    Args:
      model_name: one of `NETWORKS`.
      paths: of all arrays of the network, parameters and batch statistics.

    Returns:
      For each path the key in timm's state dict.

    Raises:
      UserError: timm has no such network, or its network no such array.
    """
    if model_name not in NETWORKS:
        raise UserError(f'timm has no {model_name}, only {sorted(NETWORKS)}')
    split = {path: tuple(path.split('/')) for path in paths}
    # What the numbering depends on: which blocks there are, and whether VGG has batch norm.
    modules = {path[:2] for path in split.values()}
    rename = _RENAME.get(model_name, _aligned_xception)
    names = {}
    for path, (*module, leaf) in split.items():
        name = rename(tuple(module), modules)
        if name is None:
            raise UserError(f"timm's {NETWORKS[model_name][0]} has nothing like {path}")
        names[path] = f'{name}.{_LEAVES[leaf]}'
    return names


def from_timm(array: Any, path: str) -> Any:
    """An array of timm's in our layout: convolutions OIHW to HWIO, dense layers OI to IO.

    VGG's fully connected layers are convolutions in timm, of 7x7 and 1x1; ours take the flattened
    features, `[H * W * C]`.

    Args:
      array: timm's.
      path: ours.
    """
    if not path.endswith('kernel'):
        return array
    array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    return array.reshape(-1, array.shape[-1]) if _is_dense_convolution(path) else array


def to_timm(array: Any, path: str) -> Any:
    """An array of ours in timm's layout; undoes `from_timm`."""
    if not path.endswith('kernel'):
        return array
    if _is_dense_convolution(path):
        side = 7 if path == 'fc1/kernel' else 1
        array = array.reshape(side, side, -1, array.shape[-1])
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def _is_dense_convolution(path: str) -> bool:
    return path.startswith('fc')


def _xception(path: tuple[str, ...], modules: set[tuple[str, ...]]) -> str | None:
    separable = {'depthwise': 'conv1', 'pointwise': 'pointwise'}
    match path:
        case ('logits',):
            return 'fc'
        case 'entry_flow', ('conv1' | 'conv2') as unit, kind:
            return f'{kind}{_number(unit)}'
        case 'exit_flow', ('sepconv3' | 'sepconv4') as unit, 'bn':
            return f'bn{_number(unit)}'
        case 'exit_flow', ('sepconv3' | 'sepconv4') as unit, kind:
            return f'conv{_number(unit)}.{separable[kind]}'
        case flow, block, unit, kind:
            n = _number(block) + {'entry_flow': 0, 'middle_flow': 3, 'exit_flow': 11}[flow]
            if unit == 'shortcut':
                return f'block{n}.' + {'conv': 'skip', 'bn': 'skipbn'}[kind]
            # A block is a list: ReLU (not in block 1), separable convolution, batch norm; again.
            place = 3 * (_number(unit) - 1) + (n > 1)
            if kind == 'bn':
                return f'block{n}.rep.{place + 1}'
            return f'block{n}.rep.{place}.{separable[kind]}'
    return None


def _aligned_xception(path: tuple[str, ...], modules: set[tuple[str, ...]]) -> str | None:
    kinds = {
        'depthwise': 'conv_dw',
        'depthwise_bn': 'bn_dw',
        'pointwise': 'conv_pw',
        'bn': 'bn_pw',
    }
    entry, middle = (
        sum(module[0] == flow and module[1].startswith('block') for module in modules)
        for flow in ('entry_flow', 'middle_flow')
    )
    start = {'entry_flow': 0, 'middle_flow': entry, 'exit_flow': entry + middle}
    match path:
        case ('logits',):
            return 'head.fc'
        case 'entry_flow', ('conv1' | 'conv2') as unit, kind:
            return f'stem.{_number(unit) - 1}.{kind}'
        case 'exit_flow', unit, kind:  # the last block has no shortcut: sepconv4 to sepconv6
            return f'blocks.{entry + middle + 1}.stack.conv{_number(unit) - 3}.{kinds[kind]}'
        case flow, block, 'shortcut', kind:
            return f'blocks.{start[flow] + _number(block) - 1}.shortcut.{kind}'
        case flow, block, unit, kind:
            n = start[flow] + _number(block) - 1
            return f'blocks.{n}.stack.conv{_number(unit)}.{kinds[kind]}'
    return None


def _inception_v3(path: tuple[str, ...], modules: set[tuple[str, ...]]) -> str | None:
    stem = ('1a_3x3', '2a_3x3', '2b_3x3', '3b_1x1', '4a_3x3')
    mixed = ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b', '7c')
    match path:
        case ('logits',):
            return 'fc'
        case 'aux', 'logits':
            return 'AuxLogits.fc'
        case 'aux', unit, kind:
            return f'AuxLogits.conv{_number(unit) - 1}.{kind}'
        case unit, kind:
            return f'Conv2d_{stem[_number(unit) - 1]}.{kind}'
        case block, unit, kind:
            n = _number(block)
            # A branch of one convolution has no number in timm.
            if unit == 'branch1x1_1' or (n, unit) == (3, 'branch3x3_1'):
                unit = unit.removesuffix('_1')
            return f'Mixed_{mixed[n]}.{unit}.{kind}'
    return None


def _resnet(path: tuple[str, ...], modules: set[tuple[str, ...]]) -> str | None:
    match path:
        case ('logits',):
            return 'fc'
        case 'conv1', kind:
            return f'{kind}1'
        case block, unit, kind:
            stage, n = (_number(part) for part in block.split('_'))
            unit = f'{kind}{unit[-1]}'
            if path[1] == 'shortcut':
                unit = {'conv': 'downsample.0', 'bn': 'downsample.1'}[kind]
            return f'layer{stage}.{n - 1}.{unit}'
    return None


def _vgg16(path: tuple[str, ...], modules: set[tuple[str, ...]]) -> str | None:
    match path:
        case ('logits',):
            return 'head.fc'
        case (('fc1' | 'fc2') as unit,):
            return f'pre_logits.{unit}'
        case (unit,) if unit.startswith('block'):
            # One list of convolution, perhaps batch norm, ReLU, and a pooling after each stage.
            stage, n = (_number(part) for part in unit.split('_'))
            length = 3 if any('bn' in module[0] for module in modules) else 2
            before = sum(convolutions for _, convolutions in vgg16.STAGES[: stage - 1])
            return f'features.{length * (before + n - 1) + stage - 1 + ("bn" in unit)}'
    return None


def _number(name: str) -> int:
    found = re.search(r'\d+$', name)
    assert found, name
    return int(found[0])


_RENAME = {
    'xception': _xception,
    'inception_v3': _inception_v3,
    'resnet152': _resnet,
    'vgg16': _vgg16,
}
