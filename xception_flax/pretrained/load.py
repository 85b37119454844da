"""Loads weights, whoever trained them, into our networks."""

import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from xception_flax import config as configs
from xception_flax import models
from xception_flax.config.checks import build_model
from xception_flax.models import layers
from xception_flax.pretrained import files, known, libraries
from xception_flax.pretrained.files import Arrays
from xception_flax.pretrained.libraries import Library
from xception_flax.runtime.checkpoints import load_checkpoint
from xception_flax.runtime.errors import UserError

HEADS = ('logits', 'aux')  # modules whose size follows the number of classes


def load_pretrained(
    path: str | os.PathLike[str], model: nn.Module | None = None, new_head: bool = False
) -> tuple[nn.Module, dict[str, Any], ConfigDict]:
    """Loads weights of Keras, timm or our own.

    Args:
      path: a file of Keras (`.h5`, `.weights.h5`, `.keras`; with or without the classifier) or of
        timm (`.safetensors`, `.pth`), a run's workdir, or a name of `known.KNOWN`, such as
        'keras/xception'. NAME=PATH says what a file is whose name does not tell.
      model: the network to load them into; None for the one that computes what theirs does.
      new_head: whether the classifier is drawn anew, and not loaded; for 1000 classes where neither
        a network nor the file says of how many.

    Returns:
      The model, its variables for `model.apply`, and a config for it, with the size, crop and
      preprocessing that the weights expect; what `load_checkpoint` returns.

    Raises:
      UserError: there is no such file, it is damaged, or it does not fit the network; says what is
        missing, left over or of another shape.
    """
    found, published = known.find(os.fspath(path))
    if found.is_dir():
        own, variables, config = load_checkpoint(found)
        if model is None and not new_head:
            return own, variables, config
        library, arrays = libraries.OWN, flatten(variables)
    else:
        name, arrays = files.read(found)
        library = libraries.LIBRARIES[name]
        arrays = library.canonical(arrays)
        config = _config(found, library, arrays, published)
    if model is not None:
        set_network(config, model)
    elif config.dataset.num_classes is None and new_head:
        config.dataset.num_classes = 1000  # as many as `create_model` takes by itself
    elif config.dataset.num_classes is None:
        raise UserError(
            f'{found} has no classifier: say of how many classes it shall be, by '
            "model=create_model('xception', num_classes=...) and new_head=True"
        )
    model = model or build_model(config, config.dataset.num_classes)
    variables = _fill(found, library, model, config, arrays, new_head)
    return model, variables, config


def flatten(variables: Any) -> dict[str, Any]:
    """Variables by path, without the collection: 'entry_flow/conv1/bn/mean'."""
    flat: dict[str, Any] = {}
    for tree in variables.values():
        flat |= traverse_util.flatten_dict(tree, sep='/')
    return flat


def abstract_variables(model: nn.Module, image_size: int) -> Any:
    """Shapes and types of a network's variables."""
    x = jnp.zeros((1, image_size, image_size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


def set_network(config: ConfigDict, model: nn.Module) -> None:
    """Makes a network that of a config.

    Raises:
      UserError: it is another network than the config's.
    """
    names = [name for name, kind in models.MODELS.items() if type(model) is kind]
    if config.model not in names:
        raise UserError(f'these are weights of {config.model}, not of {names[0]}')
    for option in config[config.model]:
        config[config.model][option] = getattr(model, option)
    config.dtype = jnp.dtype(model.dtype).name
    config.dataset.num_classes = model.num_classes


def _config(
    path: pathlib.Path, library: Library, arrays: Arrays, published: known.Known | None
) -> ConfigDict:
    """The config of a file's network, and of the pictures that it expects."""
    network, options = library.recognise(arrays)
    if not network:
        raise UserError(
            f'{path} holds none of the networks here; {library.name} files are read for '
            f'{sorted(library.networks)}'
        )
    published = published or known.usual(library.name, network)
    config = configs.default()
    config.model = network
    config.dataset.num_classes = options.pop('num_classes', None)
    config.dataset.name = 'imagenet2012'
    config.image_size = options.pop('image_size', published.image_size)
    config[network].update(options)
    config.crop_fraction = published.crop_fraction
    config.interpolation = published.interpolation
    config.preprocessing = published.preprocessing
    config.ema_decay = 0.0
    return config


def _fill(
    path: pathlib.Path,
    library: Library,
    model: nn.Module,
    config: ConfigDict,
    arrays: Arrays,
    new_head: bool,
) -> dict[str, Any]:
    """The network's variables with the values of a file.

    Raises:
      UserError: the two do not fit.
    """
    abstract = abstract_variables(model, config.image_size)
    shapes = flatten(abstract)
    # A learned scale that one side does not have is one there.
    scales = {key.removesuffix('mean') + 'scale' for key in shapes if key.endswith('/mean')}
    absent = sorted(scales - shapes.keys())
    names = library.names(config.model, [*shapes, *absent])

    values: Arrays = {}
    problems: dict[str, str] = {}
    for key, shape in shapes.items():
        name = names[key]
        if new_head and _in_head(key):
            values[key] = _draw(key, shape)
        elif name in arrays:
            values[key] = library.to_ours(arrays[name], key).astype(shape.dtype)
            if values[key].shape != shape.shape:
                problems[key] = f'{name} is {values[key].shape}, not {shape.shape}'
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
        told = [*list(problems.values())[:5], *(['...'] if len(problems) > 5 else [])]
        hint = '; new_head=True draws a new classifier' if all(map(_in_head, problems)) else ''
        raise UserError(
            f'{path} does not fit {config.model} ({len(problems)} arrays): {"; ".join(told)}{hint}'
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


def _draw(path: str, shape: jax.ShapeDtypeStruct) -> Any:
    """An initial value for an array of a classifier."""
    role = path.rsplit('/', 1)[-1]
    if role == 'kernel':
        return layers.kernel_init(jax.random.key(0), shape.shape, shape.dtype)
    value = 1.0 if role in ('scale', 'var') else 0.0
    return np.full(shape.shape, value, shape.dtype)
