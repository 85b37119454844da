"""How other libraries name and lay out the arrays of our networks."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xception_flax.pretrained import keras_names, timm_names

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Library:
    """One library's way.

    Attributes:
      name: 'keras', 'timm' or 'own'.
      networks: which of our networks it has.
      names: of a network and the paths of our arrays, its names by our path.
      to_ours, to_theirs: an array in the other's layout; takes it and our path.
      canonical: a file's arrays, with names that are always the same.
      recognise: the network that a file's arrays belong to ('' for none), and options of it.
    """

    name: str
    networks: tuple[str, ...]
    names: Callable[[str, Iterable[str]], dict[str, str]]
    to_ours: Callable[[np.ndarray, str], np.ndarray]
    to_theirs: Callable[[np.ndarray, str], np.ndarray]
    canonical: Callable[[Arrays], Arrays]
    recognise: Callable[[Arrays], tuple[str, dict[str, Any]]]


def _timm_canonical(arrays: Arrays) -> Arrays:
    """Without counters of batches; Cadene's 'last_linear' as timm's 'fc'."""
    return {
        re.sub(r'^last_linear\.', 'fc.', name): array
        for name, array in arrays.items()
        if not name.endswith('num_batches_tracked')
    }


def _timm_recognise(arrays: Arrays) -> tuple[str, dict[str, Any]]:
    blocks = {int(m[1]) for name in arrays if (m := re.match(r'blocks\.(\d+)\.', name))}
    layers = [
        {int(m[1]) for name in arrays if (m := re.match(rf'layer{i}\.(\d+)\.conv3', name))}
        for i in (1, 2, 3, 4)
    ]
    classifier = next((arrays[n] for n in ('fc.weight', 'head.fc.weight') if n in arrays), None)
    options: dict[str, Any] = {}
    if classifier is not None:
        options['num_classes'] = classifier.shape[0]
    network = ''
    if 'conv4.pointwise.weight' in arrays:
        network = 'xception'
    elif 'blocks.0.stack.conv1.conv_dw.weight' in arrays:
        network = {13: 'xception41', 21: 'xception65', 23: 'xception71'}.get(len(blocks), '')
    elif 'Mixed_7c.branch_pool.conv.weight' in arrays:
        network = 'inception_v3'
        options['auxiliary'] = 'AuxLogits.fc.weight' in arrays
    elif 'features.0.weight' in arrays and 'pre_logits.fc1.weight' in arrays:
        network = 'vgg16'
        options['batch_norm'] = 'features.1.running_mean' in arrays
        options['bn_epsilon'] = 1e-5
    elif all(layers):
        network = 'resnet152'
        options['stages'] = tuple(len(found) for found in layers)
    if not network:
        return '', {}
    return network, options | timm_names.NETWORKS[network][1]


KERAS = Library(
    'keras',
    tuple(keras_names.RULES),
    keras_names.keras_names,
    keras_names.from_keras,
    keras_names.to_keras,
    keras_names.canonical,
    keras_names.recognise,
)
TIMM = Library(
    'timm',
    tuple(timm_names.NETWORKS),
    timm_names.timm_names,
    timm_names.from_timm,
    timm_names.to_timm,
    _timm_canonical,
    _timm_recognise,
)
OWN = Library(
    'own',
    (),
    lambda _, paths: {path: path for path in paths},
    lambda array, _: array,
    lambda array, _: array,
    lambda arrays: arrays,
    lambda _: ('', {}),
)
LIBRARIES = {library.name: library for library in (KERAS, TIMM)}
