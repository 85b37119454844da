"""Writes weights for other libraries, and as a workdir of our own."""

import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from xception_flax.config import reading
from xception_flax.pretrained import keras_names
from xception_flax.pretrained.libraries import KERAS, TIMM, Library
from xception_flax.pretrained.load import flatten, set_network
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.runtime.errors import UserError
from xception_flax.training.state import TrainState

Arrays = dict[str, np.ndarray]


def save_pretrained(
    path: str | os.PathLike[str], model: nn.Module, variables: Any, config: ConfigDict
) -> None:
    """Writes a network's weights; the counterpart of `load_pretrained`.

    Args:
      path: a file for Keras (`.weights.h5`; needs Keras) or for timm (`.safetensors`), or a folder
        to be, which becomes a workdir.
      model: the network.
      variables: its variables.
      config: as `load_pretrained` and `load_checkpoint` give it.

    Raises:
      UserError: the path is taken, of another kind, or the network has no counterpart there.
    """
    target = check_target(path)
    config = config.copy_and_resolve_references()
    set_network(config, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.partial-{target.name}')
    _WRITERS[_kind(target)](partial, variables, config)
    partial.rename(target)


def check_target(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path as weights can be written to.

    Raises:
      UserError: it is taken, or its ending says nothing.
    """
    target = pathlib.Path(path).expanduser().absolute()
    if target.exists():
        raise UserError(f'{target} is there already; remove it, or give another name')
    if _kind(target) not in _WRITERS:
        raise UserError(
            f'{target} is no name for weights: for Keras it ends in .weights.h5, for timm in '
            '.safetensors; a folder has no ending'
        )
    return target


def _kind(path: pathlib.Path) -> str:
    return '.weights.h5' if path.name.endswith('.weights.h5') else path.suffix


def differences(path: str | os.PathLike[str], model: nn.Module, config: ConfigDict) -> list[str]:
    """In what the other library's network computes something else than ours, in words."""
    kind, found = _kind(pathlib.Path(path)), []
    if not kind:
        return []
    theirs = {'.weights.h5': KERAS, '.safetensors': TIMM}[kind]
    for option, (value, what) in _GRAPHS.get((theirs.name, config.model), {}).items():
        if getattr(model, option) != value:
            found.append(f"{theirs.name}'s network has {what} ({option}={value!r} here)")
    return found


# What other libraries' networks do, by our options; weights fit whatever they are.
_GRAPHS: dict[tuple[str, str], dict[str, tuple[Any, str]]] = {
    ('keras', 'xception'): {
        'variant': ('keras', 'max pools of padding SAME'),
        'bn_epsilon': (1e-3, 'an epsilon of 1e-3 in batch norm'),
    },
    ('timm', 'xception'): {
        'variant': ('timm', 'max pools of symmetric padding'),
        'bn_epsilon': (1e-5, 'an epsilon of 1e-5 in batch norm'),
    },
    ('keras', 'inception_v3'): {'variant': ('slim', 'means that leave the padding out')},
    ('timm', 'inception_v3'): {'variant': ('timm', 'means that count the padding')},
}


def _theirs(library: Library, config: ConfigDict, variables: Any) -> Arrays:
    """The arrays by the library's names, in its layout."""
    ours = {key: np.asarray(value) for key, value in flatten(variables).items()}
    for key in [key for key in ours if key.endswith('/mean')]:  # a network without learned scales
        ours.setdefault(key.removesuffix('mean') + 'scale', np.ones_like(ours[key]))
    names = library.names(config.model, ours)
    return {
        names[key]: np.ascontiguousarray(library.to_theirs(value, key))
        for key, value in ours.items()
    }


def _save_timm(path: pathlib.Path, variables: Any, config: ConfigDict) -> None:
    arrays = _theirs(TIMM, config, variables)
    counters = {
        name.replace('running_mean', 'num_batches_tracked'): np.zeros((), np.int64)
        for name in arrays
        if name.endswith('running_mean')
    }
    safetensors.numpy.save_file(arrays | counters, path, metadata={'format': 'pt'})


APPLICATIONS = {
    'xception': 'Xception',
    'inception_v3': 'InceptionV3',
    'vgg16': 'VGG16',
    'resnet152': 'ResNet152',
}
RESNETS = {(3, 4, 6, 3): 'ResNet50', (3, 4, 23, 3): 'ResNet101', (3, 8, 36, 3): 'ResNet152'}


def _save_keras(path: pathlib.Path, variables: Any, config: ConfigDict) -> None:
    """Fills Keras's own application and lets Keras write it."""
    arrays = _theirs(KERAS, config, variables)
    application = APPLICATIONS[config.model]
    if config.model == 'resnet152':
        application = RESNETS.get(tuple(config.resnet152.stages), application)
    os.environ.setdefault('KERAS_BACKEND', 'jax')
    try:
        import keras
    except ImportError:
        raise UserError("writing Keras's format needs Keras: pip install keras") from None
    size = config.image_size
    model = getattr(keras.applications, application)(
        weights=None, classes=config.dataset.num_classes, input_shape=(size, size, 3)
    )
    names = keras_names.ranked(layer.name for layer in model.layers if layer.weights)
    problems = []
    for layer in model.layers:
        for weight in layer.weights:
            role = _ROLES.get(weight.name, weight.name)
            value = arrays.pop(f'{names[layer.name]}/{role}', None)
            if value is None or value.shape != tuple(weight.shape):
                problems.append(f'{names[layer.name]}/{role} of {tuple(weight.shape)}')
            else:
                weight.assign(value)
    # Keras's Inception V3 has no scales.
    problems += [n for n, v in arrays.items() if not (n.endswith('/scale') and np.all(v == 1))]
    if problems:
        raise UserError(
            f"the network is not Keras's {application}: they differ in {', '.join(problems[:5])}"
        )
    model.save_weights(path)


_ROLES = {
    'depthwise_kernel': 'depthwise',
    'pointwise_kernel': 'pointwise',
    'gamma': 'scale',
    'beta': 'bias',
    'moving_mean': 'mean',
    'moving_variance': 'var',
}


def _save_workdir(path: pathlib.Path, variables: Any, config: ConfigDict) -> None:
    path.mkdir()
    config.ema_decay = 0.0
    state = TrainState(
        step=np.int32(0),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=(),
        ema=None,
        rng=jax.random.key_data(jax.random.key(0)),
    )
    checkpoints = Checkpoints(path)
    checkpoints.save(Checkpoint(state))
    checkpoints.close()
    (path / 'config.json').write_text(reading.to_json(config))


_WRITERS = {'.weights.h5': _save_keras, '.safetensors': _save_timm, '': _save_workdir}
