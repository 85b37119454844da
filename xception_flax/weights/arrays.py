"""A network's variables as arrays by path, and its place in a config."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from xception_flax import models
from xception_flax.base.errors import UserError

Arrays = dict[str, np.ndarray]


def by_path(variables: Any) -> dict[str, Any]:
    """Variables by path, without the collection: 'entry_flow/conv1/bn/mean'."""
    flat: dict[str, Any] = {}
    for tree in variables.values():
        flat |= traverse_util.flatten_dict(tree, sep='/')
    return flat


def set_network(config: ConfigDict, model: models.Network) -> None:
    """Makes `model`, with its options, the network of a config of the same architecture."""
    name = models.name_of(model)
    if config.model != name:
        raise UserError(f'these are weights of {config.model}, not of {name}')
    for option in config[name]:
        config[name][option] = getattr(model, option)
    config.dtype = jnp.dtype(model.dtype).name
    config.dataset.num_classes = model.num_classes
