"""Writes trained networks: for other libraries, as programs, and as the folder of a run."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from xception_flax.base import extras, paths
from xception_flax.base.errors import UserError
from xception_flax.models import Network
from xception_flax.runtime import workdirs
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints, TrainState
from xception_flax.weights import export, hub, keras_names, keras_order, timm_names
from xception_flax.weights.arrays import Arrays, by_path, set_network


def save(
    path: str | os.PathLike[str],
    model: Network,
    variables: dict[str, Any],
    config: ConfigDict,
    class_names: Sequence[str] | None = None,
    measured: dict[str, Any] | None = None,
    for_hub: bool = False,
) -> str:
    """Writes a network; see `Trained.save`, whose fields and arguments these are.

    Returns:
      Where it is now.

    Raises:
      UserError: the path exists or has another ending, the format has no such network, or the hub
        refuses it.
    """
    config = config.copy_and_resolve_references()
    set_network(config, model)
    if os.fspath(path).startswith(hub.PREFIX):
        with tempfile.TemporaryDirectory() as folder:
            local = pathlib.Path(folder) / 'model'
            save(local, model, variables, config, class_names, measured, for_hub=True)
            return hub.upload(local, os.fspath(path).removeprefix(hub.PREFIX))
    target = check_target(path, for_hub)
    with _whole(target, _is_run(target, for_hub)) as partial:
        if for_hub:
            _save_for_hub(partial, model, variables, config, class_names, measured)
        elif target.suffix:
            _WRITERS[_kind(target)](partial, model, variables, config)
        else:
            _save_run(partial, variables, config, class_names)
    return str(target)


@contextlib.contextmanager
def _whole(target: paths.Path, is_run: bool) -> Iterator[paths.Path]:
    """Gives a path to write to, which becomes the target; nothing remains of what fails."""
    if paths.in_bucket(target):
        with _whole_in_bucket(target, is_run) as partial:
            yield partial
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.partial-{target.name}')
    _remove(partial)  # of a program that was killed
    try:
        yield partial
        partial.rename(target)
    finally:
        _remove(partial)


@contextlib.contextmanager
def _whole_in_bucket(target: paths.Path, is_run: bool) -> Iterator[paths.Path]:
    if not is_run:
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / target.name
            paths.upload(pathlib.Path(folder) / target.name, target)
        return
    try:
        yield target  # only orbax writes checkpoints as it reads them in a bucket
    except BaseException:
        paths.remove_folder(target)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_target(path: str | os.PathLike[str], for_hub: bool = False) -> paths.Path:
    """The path, checked to be one that `save` can write; else a `UserError` says why not."""
    if os.fspath(path).startswith(hub.PREFIX):
        return pathlib.Path(path)
    target = paths.folder(path, writing=_is_run(path, for_hub))
    if target.exists():
        raise UserError(f'{target} exists already; remove it, or give another name')
    if target.suffix and (for_hub or _kind(target) not in _WRITERS):
        raise UserError(
            f'{target} has no ending of a format: for Keras it is .weights.h5, for timm '
            '.safetensors, for programs .stablehlo or .onnx; the folder of a run, or for the hub, '
            'has none'
        )
    return target


def _is_run(path: str | os.PathLike[str], for_hub: bool) -> bool:
    """Whether `save` writes the folder of a run there."""
    return not (for_hub or pathlib.PurePath(path).suffix)


def _kind(path: pathlib.Path) -> str:
    if str(path).startswith(hub.PREFIX):
        return '.safetensors'
    return '.weights.h5' if path.name.endswith('.weights.h5') else path.suffix


def differences(
    path: str | os.PathLike[str], model: Network, config: ConfigDict, for_hub: bool = False
) -> list[str]:
    """What the network of the library that reads the saved one computes differently, in words."""
    kind = '.safetensors' if for_hub else _kind(pathlib.Path(path))
    library = {'.weights.h5': 'keras', '.safetensors': 'timm'}.get(kind, '')
    found = [
        f"{library}'s network has {what} (that is {option}={value!r} here)"
        for option, (value, what) in _GRAPHS.get((library, config.model), {}).items()
        if getattr(model, option) != value
    ]
    if library == 'keras' and config.loss == 'sigmoid':
        found.append(
            "keras's network has softmax, unless made with classifier_activation='sigmoid'"
        )
    return found


# What networks of other libraries compute, by our options; the arrays fit in any case.
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


def _theirs(library: ModuleType, config: ConfigDict, variables: Any) -> Arrays:
    """The arrays by the names of a library, in its layout."""
    ours = {key: np.asarray(value) for key, value in by_path(variables).items()}
    for key in [key for key in ours if key.endswith('/mean')]:  # a network without learned scales
        ours.setdefault(key.removesuffix('mean') + 'scale', np.ones_like(ours[key]))
    names = library.names(config.model, ours)
    return {
        names[key]: np.ascontiguousarray(library.to_theirs(value, key))
        for key, value in ours.items()
    }


def _save_timm(path: pathlib.Path, model: Network, variables: Any, config: ConfigDict) -> None:
    arrays = _theirs(timm_names, config, variables)
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


def _save_keras(path: pathlib.Path, model: Network, variables: Any, config: ConfigDict) -> None:
    """Fills the application of Keras and lets Keras write it."""
    arrays = _theirs(keras_names, config, variables)
    application = APPLICATIONS[config.model]
    if config.model == 'resnet152':
        application = keras_order.RESNETS.get(tuple(config.resnet152.stages), application)
    os.environ.setdefault('KERAS_BACKEND', 'jax')
    with extras.needed('pip install keras', 'writing a file of Keras'):
        import keras
    # Keras refuses small images, but only the weights of VGG-16 depend on the size.
    size = config.image_size if config.model == 'vgg16' else 299
    theirs = getattr(keras.applications, application)(
        weights=None, classes=config.dataset.num_classes, input_shape=(size, size, 3)
    )
    names = keras_names.ranked(layer.name for layer in theirs.layers if layer.weights)
    problems = []
    for layer in theirs.layers:
        for weight in layer.weights:
            role = _ROLES.get(weight.name, weight.name)
            value = arrays.pop(f'{names[layer.name]}/{role}', None)
            if value is None or value.shape != tuple(weight.shape):
                problems.append(f'{names[layer.name]}/{role} of {tuple(weight.shape)}')
            else:
                weight.assign(value)
    # Inception V3 of Keras has no scales.
    problems += [n for n, v in arrays.items() if not (n.endswith('/scale') and np.all(v == 1))]
    if problems:
        raise UserError(
            f'the network is not {application} of Keras: they differ in {", ".join(problems[:5])}'
        )
    theirs.save_weights(path)


_ROLES = {
    'depthwise_kernel': 'depthwise',
    'pointwise_kernel': 'pointwise',
    'gamma': 'scale',
    'beta': 'bias',
    'moving_mean': 'mean',
    'moving_variance': 'var',
}


def _save_for_hub(
    path: pathlib.Path,
    model: Network,
    variables: Any,
    config: ConfigDict,
    class_names: Sequence[str] | None,
    measured: dict[str, Any] | None,
) -> None:
    path.mkdir()
    _save_timm(path / hub.WEIGHTS[0], model, variables, config)
    said = hub.configuration(model, config, class_names)
    count = sum(x.size for x in jax.tree.leaves(variables['params']))
    notes = differences('', model, config, for_hub=True)
    (path / hub.CONFIG).write_text(json.dumps(said, indent=2) + '\n')
    (path / 'README.md').write_text(hub.card(config, said, count, measured, notes))


def _save_run(
    path: pathlib.Path,
    variables: dict[str, Any],
    config: ConfigDict,
    class_names: Sequence[str] | None,
) -> None:
    path.mkdir()
    config.ema_decay = 0.0
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=(),
        ema=None,
        rng=jax.random.key_data(jax.random.key(0)),
    )
    checkpoints = Checkpoints(path)
    checkpoints.save(Checkpoint(state))
    checkpoints.close()
    workdirs.write_settings(path, config, class_names)


_WRITERS: dict[str, Callable[[pathlib.Path, Network, Any, ConfigDict], None]] = {
    '.weights.h5': _save_keras,
    '.safetensors': _save_timm,
    '.stablehlo': export.save_stablehlo,
    '.onnx': export.save_onnx,
}
