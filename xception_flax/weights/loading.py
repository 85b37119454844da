"""Loads a trained network: a run's, or one that Keras or timm wrote."""

import os
import pathlib
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from xception_flax import config as configs
from xception_flax import models
from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.models import Network, layers
from xception_flax.runtime import checkpoints, workdirs
from xception_flax.weights import files, keras_names, published, timm_names
from xception_flax.weights.arrays import Arrays, by_path, set_network
from xception_flax.weights.published import Published
from xception_flax.weights.trained import Trained

WEIGHTS = ('averaged', 'live')
HEADS = ('logits', 'aux')  # modules whose size follows the number of classes
FORMATS: dict[str, ModuleType] = {'keras': keras_names, 'timm': timm_names}


def load(
    where: str | os.PathLike[str],
    step: int | None = None,
    weights: str = 'averaged',
    *,
    model: Network | None = None,
    new_head: bool = False,
) -> Trained:
    """Loads a trained network.

    Args:
      where: the folder of a run; a file of Keras (`.h5`, `.weights.h5`, `.keras`) or timm
        (`.safetensors`, `.pth`); or a published name, such as 'keras/xception'. NAME=PATH says what
        a file is whose name does not tell.
      step: which checkpoint of a run; None for the newest.
      weights: of a run: 'averaged' (those that are evaluated; the live ones if the run does not
        average) or 'live'.
      model: the network to load into; None for the one that computes what the saved one does.
      new_head: whether to initialise the classifier instead of loading it; it gets 1000 classes if
        neither `model` nor the file has a number.

    Raises:
      UserError: there is no such run, checkpoint or file, it is damaged, or it does not fit the
        network; says which there are, or what is missing, left over or of another shape.
    """
    if weights not in WEIGHTS:
        raise UserError(f'weights is {weights!r}; choose from {WEIGHTS}')
    path, known = published.find(os.fspath(where))
    if not path.exists():
        raise UserError(f'there is no run, no weights file and no published name {str(where)!r}')
    if path.is_dir():
        net = _load_run(path, step, weights)
        if model is None and not new_head:
            return net
        return _fit(path, None, by_path(net.variables), net.config, model, new_head)
    if step is not None:
        raise UserError(f'{where} is no run: a weights file has no step {step}')
    name, arrays = files.read(path)
    arrays = FORMATS[name].canonical(arrays)
    return _fit(path, FORMATS[name], arrays, _config(path, name, arrays, known), model, new_head)


def allow_float64(where: str | os.PathLike[str]) -> None:
    """Turns on 64-bit types if `where` is a run in float64; programs call it before `load`."""
    file = pathlib.Path(where).expanduser() / 'config.json'
    if file.is_file() and reading.from_json(file).dtype == 'float64':
        jax.config.update('jax_enable_x64', True)


def _load_run(workdir: pathlib.Path, step: int | None, weights: str) -> Trained:
    workdir = workdir.absolute()
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
    return Trained(model, variables, config, None if names is None else tuple(names))


def _fit(
    path: pathlib.Path,
    library: ModuleType | None,
    arrays: Arrays,
    config: ConfigDict,
    model: Network | None,
    new_head: bool,
) -> Trained:
    """The arrays of a file, by its library's names or our own, as a network's variables."""
    if model is not None:
        set_network(config, model)
    elif config.dataset.num_classes is None and new_head:
        config.dataset.num_classes = 1000  # the default of `create_model`
    elif config.dataset.num_classes is None:
        raise UserError(
            f'{path} has no classifier: give the number of classes, by '
            "model=create_model('xception', num_classes=...) and new_head=True"
        )
    model = model or models.build_model(config, config.dataset.num_classes)
    return Trained(model, _fill(path, library, model, config, arrays, new_head), config)


def _config(
    path: pathlib.Path, library: str, arrays: Arrays, known: Published | None
) -> ConfigDict:
    """The config of a file's network, and of the images that it expects."""
    names = FORMATS[library]
    network, options = names.recognise(arrays)
    if not network:
        raise UserError(
            f'{path} holds none of the networks here; files of {names.NAME} are read for '
            f'{sorted(names.NETWORKS)}'
        )
    known = known or published.usual(library, network)
    config = configs.default()
    config.model = network
    config.dataset.num_classes = options.pop('num_classes', None)
    config.dataset.name = 'imagenet2012'
    config.image_size = options.pop('image_size', known.image_size)
    config[network].update(options)
    config.protocol = known.protocol
    config.crop_fraction = known.crop_fraction
    config.interpolation = known.interpolation
    config.preprocessing = known.preprocessing
    config.ema_decay = 0.0
    return config


def _fill(
    path: pathlib.Path,
    library: ModuleType | None,
    model: Network,
    config: ConfigDict,
    arrays: Arrays,
    new_head: bool,
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
        elif name in arrays:
            value = library.to_ours(arrays[name], key) if library else arrays[name]
            values[key] = value.astype(shape.dtype)
            if value.shape != shape.shape:
                problems[key] = f'{name} is {value.shape}, not {shape.shape}'
        elif key in scales:
            values[key] = np.ones(shape.shape, shape.dtype)
        else:
            problems[key] = f'{name} is missing'
    for key in absent:
        if np.any(arrays.get(names[key], 1) != 1):
            problems[key] = f'{names[key]} is not all ones, and the network has no learned scale'
    left = arrays.keys() - set(names.values())
    problems |= {name: f'{name} is left over' for name in sorted(left) if not _auxiliary(name)}
    if problems:
        listed = [*list(problems.values())[:5], *(['...'] if len(problems) > 5 else [])]
        hint = '; new_head=True makes a new classifier' if all(map(_in_head, problems)) else ''
        raise UserError(
            f'{path} does not fit {config.model} ({len(problems)} arrays): '
            f'{"; ".join(listed)}{hint}'
        )
    flat = {
        (collection, *key): values['/'.join(key)]
        for collection, tree in abstract.items()
        for key in traverse_util.flatten_dict(tree)
    }
    return jax.device_put(traverse_util.unflatten_dict(flat))


def _in_head(path: str) -> bool:
    return path.split('/')[0] in HEADS


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
