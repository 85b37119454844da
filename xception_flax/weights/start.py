"""Weights to start a run from: `config.init.weights`."""

import shlex
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.models import head_layer
from xception_flax.weights.loading import load
from xception_flax.weights.trained import Trained

Tree = Any

CLASSIFIERS = ('logits', 'aux/logits')
# Options that may differ from those the weights were trained with: they act in training only,
# belong to the head, or give the same features at more positions.
FREE_OPTIONS = (
    'dropout', 'bn_momentum', 'bn_group_size', 'fc_layers', 'auxiliary', 'output_stride',
)  # fmt: skip


def read_start(config: ConfigDict) -> Trained:
    """Reads `config.init.weights`.

    Raises:
      UserError: they cannot be read, or belong to another network.
    """
    net = load(config.init.weights, new_head=config.init.new_head or None)
    _check_network(config.init.weights, net.config, config)
    return net


def fit_start(
    net: Trained, config: ConfigDict, shapes: dict[str, Tree]
) -> tuple[dict[str, Tree], str]:
    """Fits the weights that a run starts from to its network.

    Layers of the head that are missing there or have another shape are left to be initialised, and
    so is the classifier with `config.init.new_head`; all else has to fit.

    Args:
      net: as `read_start` gives it.
      config: the run's config.
      shapes: shapes and types of the network's variables, {'params', 'batch_stats'}.

    Returns:
      The variables, with None for what is to be initialised; and a sentence that says where they
      come from.

    Raises:
      UserError: an array of the trunk is missing, left over or of another shape.
    """
    path = config.init.weights
    there, wanted = (flatten_dict(tree, sep='/') for tree in (net.variables, shapes))
    different = [
        key
        for key in sorted({**there, **wanted})
        if key not in there or key not in wanted or there[key].shape != wanted[key].shape
    ]
    new = {layer for key in different if (layer := _head_layer(key))}
    if config.init.new_head:
        new.update(CLASSIFIERS)
    misfits = [key for key in different if _head_layer(key) not in new]
    if misfits:
        first = ', '.join(
            f'{key} {there[key].shape if key in there else "missing"} '
            f'instead of {wanted[key].shape if key in wanted else "none"}'
            for key in misfits[:3]
        )
        raise UserError(
            f'{path} does not fit {config.model}: {len(misfits)} of its arrays differ ({first})'
        )
    loaded = {
        key: None if _head_layer(key) in new else np.asarray(there[key], wanted[key].dtype)
        for key in wanted
    }
    initialised = [x for x in sorted(new) if any(_head_layer(key) == x for key in wanted)]
    report = f'starting from {path}'
    if initialised:
        report += f'; randomly initialised: {", ".join(initialised)}'
    return {**shapes, **unflatten_dict(loaded, sep='/')}, report


def _check_network(path: str, trained: ConfigDict, config: ConfigDict) -> None:
    """Checks that weights belong to the network of the config."""
    name = config.model
    settings = ['model', 'preprocessing']
    if trained.model == name:
        settings += [f'{name}.{option}' for option in config[name] if option not in FREE_OPTIONS]
    different = [setting for setting in settings if trained[setting] != config[setting]]
    if different:
        flags = [shlex.quote(f'--config.{setting}={trained[setting]}') for setting in different]
        raise UserError(
            f'{path} was trained with another network than the config has: give {" ".join(flags)}'
        )


def _head_layer(key: str) -> str | None:
    """The layer of the head that an array such as 'params/logits/kernel' belongs to, or None."""
    return head_layer(key.partition('/')[2])
