"""The names and layouts of our arrays in timm (PyTorch Image Models).

A path such as 'entry_flow/block1/sepconv1/depthwise/kernel' names an array in the collection
'params' or 'batch_stats'; no path is in both. Paths and names correspond one to one. timm's
`num_batches_tracked`, which nothing reads, has no path.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xception_flax.base.errors import UserError
from xception_flax.models import vgg16

NAME = 'timm'
# Our name of a network: its name in timm, and the options that give the graph of timm.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    'xception': ('legacy_xception', {'variant': 'timm', 'bn_epsilon': 1e-5}),
    'xception41': ('xception41', {}),
    'xception65': ('xception65', {}),
    'xception71': ('xception71', {}),
    'inception_v3': ('inception_v3', {'variant': 'timm'}),
    'vgg16': ('vgg16', {}),
    'resnet152': ('resnet152', {'variant': 'timm', 'bn_epsilon': 1e-5}),
}
# Arrays by which `recognise` tells the networks, after `canonical`.
SIGNS = (
    'conv4.pointwise.weight', 'blocks.0.stack.conv1.conv_dw.weight',
    'Mixed_7c.branch_pool.conv.weight', '13 convolutions in features', 'layer4.0.conv3.weight',
)  # fmt: skip
# Arrays of a trunk, whatever its network.
TRUNK = re.compile(r'(stem|features|blocks|block\d+|layer\d|conv\d|bn\d|(Conv2d|Mixed)_\w+)\.')

_RESNETS = {(3, 4, 6, 3): 'resnet50', (3, 4, 23, 3): 'resnet101', (3, 8, 36, 3): 'resnet152'}

_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


def names(network: str, paths: Iterable[str]) -> dict[str, str]:
    """The name of each array in timm.

    Args:
      network: one of `NETWORKS`.
      paths: paths of all arrays of the network, parameters and batch statistics.

    Returns:
      The key of each path in timm's state dict.

    Raises:
      UserError: timm has no such network, or its network has no such array.
    """
    if network not in NETWORKS:
        raise UserError(f'timm has no {network}, only {sorted(NETWORKS)}')
    split = {path: tuple(path.split('/')) for path in paths}
    # The numbering depends on which blocks there are, and on whether VGG has batch norm.
    modules = {path[:2] for path in split.values()}
    rename = _RENAME.get(network, _aligned_xception)
    found = {}
    for path, (*module, leaf) in split.items():
        name = rename(tuple(module), modules)
        if name is None:
            raise UserError(f'{NETWORKS[network][0]} of timm has no array like {path}')
        found[path] = f'{name}.{_LEAVES[leaf]}'
    return found


def architecture(network: str, options: Mapping[str, Any]) -> str:
    """The name of our network, with its options, in timm.

    Raises:
      UserError: timm has no such network.
    """
    if network not in NETWORKS:
        raise UserError(f'timm has no {network}, only {sorted(NETWORKS)}')
    if network == 'vgg16' and options['batch_norm']:
        return 'vgg16_bn'
    if network != 'resnet152':
        return NETWORKS[network][0]
    stages = tuple(options['stages'])
    if stages not in _RESNETS:
        raise UserError(f'timm has no ResNet of stages {stages}, only {list(_RESNETS)}')
    return _RESNETS[stages]


def rank(path: str, ours: int) -> int:
    """The number of dimensions in timm of an array that has `ours` here."""
    return 4 if path.endswith('kernel') and _is_dense_convolution(path) else ours


def to_ours(array: Any, path: str) -> Any:
    """An array of timm in our layout: convolutions OIHW to HWIO, dense layers OI to IO.

    In timm the fully connected layers of VGG are convolutions, 7x7 and 1x1; ours take flattened
    features, `[H * W * C]`.

    Args:
      array: the array of timm.
      path: its path here.
    """
    if not path.endswith('kernel'):
        return array
    array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    return array.reshape(-1, array.shape[-1]) if _is_dense_convolution(path) else array


def to_theirs(array: Any, path: str) -> Any:
    """Our array in the layout of timm; undoes `to_ours`.

    Raises:
      UserError: it is of a VGG for images of another size than timm's takes.
    """
    if not path.endswith('kernel'):
        return array
    if _is_dense_convolution(path):
        side = 7 if path == 'fc1/kernel' else 1
        if side == 7 and len(array) != 512 * side**2:
            raise UserError('vgg16 of timm takes images of 224x224 only')
        array = array.reshape(side, side, -1, array.shape[-1])
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def canonical(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a file by timm's names and in timm's layout.

    A prefix of all names goes (`module.`, `_orig_mod.`, `backbone.`), and so do counters, which are
    scalars. Cadene's and torchvision's names become timm's, and so do the shapes of pointwise
    kernels in old files.
    """
    arrays = {name: array for name, array in arrays.items() if array.ndim}
    while len(arrays) > 1 and len({name.partition('.')[0] for name in arrays}) == 1:
        if not all('.' in name for name in arrays):
            break
        arrays = {name.partition('.')[2]: array for name, array in arrays.items()}
    if all(re.fullmatch(r'\d+\.\w+', name) for name in arrays):  # VGG's convolutions alone
        arrays = {f'features.{name}': array for name, array in arrays.items()}
    found = {}
    torchvision = 'features.0.weight' in arrays and all(
        arrays.get(f'classifier.{n}.weight', EMPTY).shape[1:] == (width,)
        for n, width in ((0, 25088), (3, 4096), (6, 4096))
    )
    # A classifier in a list, behind a dropout.
    listed = [name for name in arrays if re.fullmatch(r'fc\.\d+\.weight', name)]
    for name, array in arrays.items():
        new = re.sub(r'^last_linear\.', 'fc.', name)
        if len(listed) == 1 and arrays[listed[0]].ndim == 2:
            new = re.sub(r'^fc\.\d+\.', 'fc.', new)
        if torchvision and (match := _TORCHVISION_VGG.fullmatch(name)):
            layer, side = _VGG_HEAD[match[1]]
            new = f'{layer}.{match[2]}'
            if side and match[2] == 'weight':
                array = array.reshape(len(array), -1, side, side)
        elif new.endswith('pointwise.weight') and array.ndim == 2:
            array = array[..., None, None]
        found[new] = array
    return found


EMPTY = np.zeros(0)  # in place of an array that is not there

# torchvision's layers of VGG's head: timm's, and the side of the kernels that timm has for them.
_TORCHVISION_VGG = re.compile(r'classifier\.([036])\.(weight|bias)')
_VGG_HIDDEN = ('pre_logits.fc1.weight', 'pre_logits.fc2.weight')
_VGG_HEAD = {'0': ('pre_logits.fc1', 7), '3': ('pre_logits.fc2', 1), '6': ('head.fc', 0)}


def recognise(arrays: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The network that these arrays belong to ('' for none), and its options as far as known."""
    blocks = {int(m[1]) for name in arrays if (m := re.match(r'blocks\.(\d+)\.', name))}
    layers = [
        {int(m[1]) for name in arrays if (m := re.match(rf'layer{i}\.(\d+)\.conv3', name))}
        for i in (1, 2, 3, 4)
    ]
    classifier = next((arrays[n] for n in ('fc.weight', 'head.fc.weight') if n in arrays), EMPTY)
    options: dict[str, Any] = {}
    if classifier.ndim == 2:
        options['num_classes'] = classifier.shape[0]
    network = ''
    if 'conv4.pointwise.weight' in arrays:
        network = 'xception'
    elif 'blocks.0.stack.conv1.conv_dw.weight' in arrays:
        network = {13: 'xception41', 21: 'xception65', 23: 'xception71'}.get(len(blocks), '')
    elif 'Mixed_7c.branch_pool.conv.weight' in arrays:
        network = 'inception_v3'
        # Only training needs it; of another number of classes it was not trained along.
        auxiliary = arrays.get('AuxLogits.fc.weight', EMPTY)
        options['auxiliary'] = auxiliary.shape[:1] == classifier.shape[:1] != EMPTY.shape
    elif 'features.0.weight' in arrays and len(_convolutions(arrays)) == 13:
        network = 'vgg16'
        hidden = [name for name in _VGG_HIDDEN if name in arrays]
        options['fc_layers'] = tuple(len(arrays[name]) for name in hidden)
        options['batch_norm'] = 'features.1.running_mean' in arrays
        options['bn_epsilon'] = 1e-5
    elif all(layers):
        network = 'resnet152'
        options['stages'] = tuple(len(found) for found in layers)
    if not network:
        return '', {}
    return network, options | NETWORKS[network][1]


def _convolutions(arrays: dict[str, Any]) -> list[str]:
    """The convolutions of VGG."""
    weights = (name for name in arrays if re.fullmatch(r'features\.\d+\.weight', name))
    return [name for name in weights if arrays[name].ndim == 4]


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
            index = 3 * (_number(unit) - 1) + (n > 1)
            if kind == 'bn':
                return f'block{n}.rep.{index + 1}'
            return f'block{n}.rep.{index}.{separable[kind]}'
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
