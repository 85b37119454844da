"""A network's variables as arrays by path, its place in a config, and what else a file may say."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from xception_flax import models
from xception_flax.base.errors import UserError

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Said:
    """What a file says of its network besides the weights; None where it says nothing.

    Attributes:
      settings: settings of the config, such as 'image_size', 'preprocessing' and 'loss'.
      options: options of the network.
      class_names: a name per class.
      problems: what no network here does, in words.
      head_problems: what no head here does.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    problems: list[str] = dataclasses.field(default_factory=list)
    head_problems: list[str] = dataclasses.field(default_factory=list)


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
