"""Names for the layers of a Keras file by their order in the model, which is how Keras loads it.

Files of Keras 1 name all layers by counters (`separableconvolution2d_34`), and so do files of Keras
3 whose groups have no names.
"""

import re
from collections.abc import Sequence

from xception_flax.weights.arrays import Arrays

RESNETS = {(3, 4, 6, 3): 'ResNet50', (3, 4, 23, 3): 'ResNet101', (3, 8, 36, 3): 'ResNet152'}
KINDS = ('conv', 'separable', 'batch')
EXTRA = 3  # layers of a kind that a head may add
# In Keras 1 a counter runs in the order in which layers are made.
KERAS_1 = re.compile(r'(?:(?:separable)?convolution2d|batchnormalization)_(\d+)')

Order = dict[str, list[str]]  # layers by kind


def layers(arrays: Arrays) -> list[str]:
    """The layers of a file, in their order."""
    return list(dict.fromkeys(name.rpartition('/')[0] for name in arrays))


def names(arrays: Arrays) -> dict[str, str]:
    """The name that Keras's network has for each layer of a trunk, if a network here has as many.

    Args:
      arrays: by layer and role, in the order of the model.
    """
    found: Order = {kind: [] for kind in KINDS}
    for layer in layers(arrays):
        if kind := _kind(arrays, layer):
            found[kind].append(layer)
    named = [layer for kind in KINDS for layer in found[kind]]
    counters = {layer: int(match[1]) for layer in named if (match := KERAS_1.fullmatch(layer))}
    made = len(counters) == len(named)
    if made:
        for kind in KINDS:
            found[kind].sort(key=lambda layer: counters[layer])
    for order in _orders(made):
        if all(0 <= len(found[kind]) - len(order.get(kind, ())) <= EXTRA for kind in KINDS):
            return {a: b for kind in order for a, b in zip(found[kind], order[kind], strict=False)}
    return {}


def _kind(arrays: Arrays, layer: str) -> str | None:
    if f'{layer}/depthwise' in arrays:
        return 'separable'
    if f'{layer}/mean' in arrays:
        return 'batch'
    kernel = arrays.get(f'{layer}/kernel')
    return 'conv' if kernel is not None and kernel.ndim == 4 else None


def _orders(made: bool) -> list[Order]:
    """The networks' layers in the order of `model.layers`, or if `made` of their making."""
    stages = enumerate((2, 2, 3, 3, 3), start=1)
    return [
        _xception(made),
        {kind: [f'{kind}#{i}' for i in range(94)] for kind in ('conv', 'batch')},
        {'conv': [f'block{stage}_conv{i + 1}' for stage, count in stages for i in range(count)]},
        *map(_resnet, RESNETS),
    ]


def _xception(made: bool) -> Order:
    found: Order = {'conv': ['block1_conv1', 'block1_conv2'], 'separable': []}
    found['batch'] = [f'{name}_bn' for name in found['conv']]
    for block in range(2, 15):
        shortcut = {2: 0, 3: 1, 4: 2, 13: 3}.get(block)
        count = 2 if block in (2, 3, 4, 13, 14) else 3
        units = [f'block{block}_sepconv{i + 1}' for i in range(count)]
        norms = [f'{unit}_bn' for unit in units]
        if shortcut is not None:
            found['conv'].append(f'conv#{shortcut}')
            # It is made first, and is as near to the output as the pooling behind the others.
            norms.insert(0 if made else len(norms), f'batch#{shortcut}')
        found['separable'] += units
        found['batch'] += norms
    return found


def _resnet(stages: Sequence[int]) -> Order:
    units = [
        f'conv{stage}_block{block}_{unit}'
        for stage, count in enumerate(stages, start=2)
        for block in range(1, count + 1)
        for unit in ((1, 2, 0, 3) if block == 1 else (1, 2, 3))
    ]
    return {
        kind: [f'{unit}_{ending}' for unit in ('conv1', *units)]
        for kind, ending in (('conv', 'conv'), ('batch', 'bn'))
    }
