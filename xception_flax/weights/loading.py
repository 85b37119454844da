"""Loads a trained network: a run's, or one of Keras, PyTorch or the Hugging Face hub."""

import os
import pathlib
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from xception_flax import config as configs
from xception_flax import models
from xception_flax.base import paths
from xception_flax.base.errors import UserError, printable
from xception_flax.config import reading
from xception_flax.models import Network, head_layer, layers
from xception_flax.runtime import checkpoints, workdirs, writers
from xception_flax.weights import (
    files,
    hub,
    keras_config,
    keras_names,
    published,
    timm_names,
)  # fmt: skip
from xception_flax.weights.arrays import Arrays, Said, by_path, set_network
from xception_flax.weights.published import Published
from xception_flax.weights.trained import Trained

WEIGHTS = ('averaged', 'live')
# Settings that published weights come with.
IMAGES = ('image_size', 'protocol', 'crop_fraction', 'interpolation', 'preprocessing')
NEW_HEAD = (
    'A new classifier is trained by `python -m xception_flax.main --config=configs/finetune.py '
    '--config.init.weights=... --config.init.new_head=True`; in Python, `load(..., new_head=True)` '
    'initialises one'
)
FORMATS: dict[str, ModuleType] = {'keras': keras_names, 'timm': timm_names}


def load(
    where: str | os.PathLike[str],
    step: int | None = None,
    weights: str = 'averaged',
    *,
    model: Network | None = None,
    new_head: bool | None = False,
) -> Trained:
    """Loads a trained network.

    Args:
      where: the folder of a run; a file of Keras (`.h5`, `.weights.h5`, `.keras`) or PyTorch
        (`.safetensors`, `.pth`, ...); a published name, such as 'keras/xception'; or
        'hf-hub:OWNER/NAME' of the Hugging Face hub, or a folder with its files. NAME=PATH says what
        a file is whose name does not tell.
      step: which checkpoint of a run; None for the newest.
      weights: of a run: 'averaged' (those that are evaluated; the live ones if the run does not
        average) or 'live'.
      model: the network to load into; None for the one that computes what the saved one does.
      new_head: whether to initialise the head instead of loading it, whatever it is in the file; it
        gets 1000 classes if neither `model` nor the file has a number. None leaves out what the
        file has not, which is enough for features.

    Raises:
      UserError: there is no such run, checkpoint or file, it is damaged, it does not fit the
        network, or it computes what no network here does; says which there are, or what is missing,
        left over, of another shape or unknown.
    """
    if weights not in WEIGHTS:
        raise UserError(f'weights is {weights!r}; choose from {WEIGHTS}')
    path, known = published.find(os.fspath(where))
    if not os.fspath(where) or not path.exists():
        raise UserError(f'there is no run, no weights file and no published name {str(where)!r}')
    repository = hub.is_repository(path)
    if path.is_dir() and not repository:
        net = _load_run(path, step, weights)
        if model is None and not new_head:
            return net
        return _fit(path, None, by_path(net.variables), net.config, Said(), model, new_head)
    if step is not None:
        raise UserError(f'{where} is no run: a weights file has no step {step}')
    with paths.local(hub.weights_file(path) if repository else path) as file:
        content = files.read(file)
    if content.note:
        logging.warning('%s: %s', path, content.note)
    library = FORMATS[content.library]
    arrays = library.canonical(content.arrays)
    network, options = _recognise(path, library, arrays)
    if known and (known.network, known.library) != (network, content.library):
        raise UserError(f'{path} holds {network} of {library.NAME}, which is not {known.name}')
    if repository:
        said = hub.read_config(path, timm_names.architecture(network, options))
    elif content.architecture:
        said = hub.read_architecture(
            content.architecture, timm_names.architecture(network, options)
        )
    else:
        said = keras_config.read(network, content.model, content.training)
    known = known or published.usual(content.library, network)
    if not new_head:
        _check_size(path, known, options, said)
    config = _config(network, options, known, said)
    return _fit(path, library, arrays, config, said, model, new_head)


def allow_float64(where: str | os.PathLike[str]) -> None:
    """Turns on 64-bit types if `where` is a run in float64; programs call it before `load`."""
    try:
        path = paths.folder(where)
    except (OSError, RuntimeError, UserError, ValueError):
        return  # `load` reports it
    file = path / 'config.json'
    if not file.is_file() or hub.is_repository(path):
        return
    if reading.from_json(file).dtype == 'float64':
        jax.config.update('jax_enable_x64', True)


def _load_run(workdir: paths.Path, step: int | None, weights: str) -> Trained:
    workdir = paths.folder(workdir)
    config = reading.from_json(workdir / 'config.json')
    if config.dtype == 'float64' and not jax.config.read('jax_enable_x64'):
        raise UserError(
            f"{workdir} was trained in float64: jax.config.update('jax_enable_x64', True) first"
        )
    model = models.build_model(config, config.dataset.num_classes)
    shapes = models.abstract_variables(model, config.image_size)
    averaged = weights == 'averaged' and bool(config.ema_decay)
    variables = checkpoints.load_variables(workdir, step, shapes, averaged)
    names = workdirs.read_classes(workdir)
    step = checkpoints.saved_steps(workdir)[-1] if step is None else step
    kind = 'averaged' if averaged else 'live'
    entries = writers.read(workdir / 'metrics.jsonl')
    evaluations = [e for e in entries if (e['step'], e.get('weights')) == (step, kind)]
    return Trained(
        model, variables, config, None if names is None else tuple(names),
        evaluations[-1] if evaluations else None,
    )  # fmt: skip


def _fit(
    path: pathlib.Path,
    library: ModuleType | None,
    arrays: Arrays,
    config: ConfigDict,
    said: Said,
    model: Network | None,
    new_head: bool | None,
) -> Trained:
    """The arrays of a file, by its library's names or our own, as a network's variables."""
    if said.problems:
        raise UserError(f'{path} cannot be used here: {printable("; ".join(said.problems))}')
    if said.head_problems and not new_head:
        raise UserError(f'{path}: {printable("; ".join(said.head_problems))}. {NEW_HEAD}')
    if model is not None:
        set_network(config, model)
    elif config.dataset.num_classes is None and new_head is False:
        behind = [name for name in arrays if library and not library.TRUNK.match(name)]
        unlike = f' but {behind[:3]}, unlike any here' if behind else ''
        raise UserError(f'{path} has no classifier{unlike}. {NEW_HEAD}')
    elif config.dataset.num_classes is None:
        config.dataset.num_classes = 1000  # the default of `create_model`
    if config.dataset.num_classes == 1 and config.loss == 'softmax' and new_head is False:
        raise UserError(
            f'{path} has one class and does not say by which activation it becomes a probability; '
            'a whole model in a .keras file does'
        )
    model = model or models.build_model(config, config.dataset.num_classes)
    if config.image_size < model.min_image_size:
        raise UserError(
            f'{path} is for images of {config.image_size} pixels; {config.model} here takes '
            f'{model.min_image_size} or more'
        )
    variables = _fill(path, library, model, config, arrays, new_head)
    names = None if new_head else said.class_names
    if names and len(names) != model.num_classes:
        raise UserError(f'{path} has {len(names)} names for {model.num_classes} classes')
    return Trained(model, variables, config, names)


def _check_size(path: pathlib.Path, known: Published, options: dict[str, Any], said: Said) -> None:
    """Checks what the classifier of a VGG says of the size of images, if nothing else says it."""
    size = options.get('image_size', known.image_size)
    if 'image_size' in said.settings or size == known.image_size:
        return
    if size == 32:
        raise UserError(
            f'{path} has a classifier for the mean of the features, or for images of 32x32; a '
            'whole model in a .keras file says which'
        )
    logging.warning('%s: images of %d pixels are assumed; up to %d fit', path, size, size + 31)


def _recognise(
    path: pathlib.Path, library: ModuleType, arrays: Arrays
) -> tuple[str, dict[str, Any]]:
    """The network that a file's arrays belong to, and its options as far as they tell."""
    network, options = library.recognise(arrays)
    if network:
        return network, options
    raise UserError(
        f'{path} holds none of the networks here ({", ".join(library.NETWORKS)}): it has '
        f'{list(arrays)[:4]} and so on, and none of {", ".join(library.SIGNS)}'
    )


def _config(network: str, options: dict[str, Any], known: Published, said: Said) -> ConfigDict:
    """The config of a file's network, and of the images that it expects."""
    config = configs.default()
    config.model = network
    config.dataset.num_classes = options.pop('num_classes', None)
    config.dataset.source = 'imagenet'
    config.ema_decay = 0.0
    for setting in IMAGES:
        config[setting] = getattr(known, setting)
    config.image_size = options.pop('image_size', config.image_size)
    config[network].update(options | said.options)
    config.update(said.settings)
    return config


def _fill(
    path: pathlib.Path,
    library: ModuleType | None,
    model: Network,
    config: ConfigDict,
    arrays: Arrays,
    new_head: bool | None,
) -> dict[str, Any]:
    """The network's variables with the values of a file."""
    abstract = models.abstract_variables(model, config.image_size)
    shapes = by_path(abstract)
    # A learned scale that only one side has is all ones there.
    scales = {key.removesuffix('mean') + 'scale' for key in shapes if key.endswith('/mean')}
    absent = sorted(scales - shapes.keys())
    keys = [*shapes, *absent]
    names = library.names(config.model, keys) if library else dict(zip(keys, keys, strict=True))

    values: Arrays = {}
    problems: dict[str, str] = {}
    for key, shape in shapes.items():
        name = names[key]
        if new_head and _in_head(key):
            values[key] = _initial(key, shape)
        elif name in arrays and arrays[name].ndim != _rank(library, key, shape):
            problems[key] = f'{name} is {arrays[name].shape}'
        elif name in arrays:
            value = library.to_ours(arrays[name], key) if library else arrays[name]
            values[key] = value.astype(shape.dtype)
            if value.shape != shape.shape:
                problems[key] = f'{name} is {value.shape}, not {shape.shape}'
        elif key in scales:
            values[key] = np.ones(shape.shape, shape.dtype)
        elif library and _in_head(key) and key.endswith('bias') and _kernel(names, key) in arrays:
            values[key] = np.zeros(shape.shape, shape.dtype)  # a dense layer without a bias
        elif new_head is False or not _in_head(key):
            problems[key] = f'{name} is missing'
    for key in absent:
        if np.any(arrays.get(names[key], 1) != 1):
            problems[key] = f'{names[key]} is not all ones, and the network has no learned scale'
    left = [name for name in sorted(arrays.keys() - set(names.values())) if not _auxiliary(name)]
    behind = [name for name in left if library and not library.TRUNK.match(name)]
    problems |= {name: f'{name} is left over' for name in left if not (new_head and name in behind)}
    if problems:
        listed = [*list(problems.values())[:5], *(['...'] if len(problems) > 5 else [])]
        head = all(_in_head(key) or key in behind for key in problems)
        raise UserError(
            f'{path} does not fit {config.model} ({len(problems)} arrays): '
            f'{"; ".join(listed)}{f". {NEW_HEAD}" if head else ""}'
        )
    flat = {
        (collection, *key): values['/'.join(key)]
        for collection, tree in abstract.items()
        for key in traverse_util.flatten_dict(tree)
        if '/'.join(key) in values
    }
    return jax.device_put(traverse_util.unflatten_dict(flat))


def _kernel(names: dict[str, str], bias: str) -> str:
    """The name of the kernel beside a bias."""
    return names[bias.removesuffix('bias') + 'kernel']


def _rank(library: ModuleType | None, path: str, shape: jax.ShapeDtypeStruct) -> int:
    """The number of dimensions of an array in a file."""
    return library.rank(path, shape.ndim) if library else shape.ndim


def _in_head(path: str) -> bool:
    return head_layer(path) is not None


def _auxiliary(name: str) -> bool:
    """Whether an array is of Inception V3's auxiliary classifier, which only training needs."""
    return name.startswith(('AuxLogits.', 'aux/'))


def _initial(path: str, shape: jax.ShapeDtypeStruct) -> Any:
    """An initial value for an array of a classifier."""
    role = path.rsplit('/', 1)[-1]
    if role == 'kernel':
        return layers.kernel_init(jax.random.key(0), shape.shape, shape.dtype)
    value = 1.0 if role in ('scale', 'var') else 0.0
    return np.full(shape.shape, value, shape.dtype)
