"""Transfer learning: weights to start from, parts that stay as they are, rates by depth."""

import contextlib
import difflib
import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from xception_flax.models.layers import BatchNorm
from xception_flax.runtime.errors import UserError, nearest

Tree = Any

TRUNK = 'trunk'
# The layers after the features: fully connected ones, the classifier, the auxiliary classifier's.
HEAD = re.compile(r'(fc\d*|logits|aux/\w+)/')
CLASSIFIERS = ('logits', 'aux/logits')
# A network's options that may differ from those its weights were trained with: they act in training
# only, belong to the head, or give the same features at more places.
FREE_OPTIONS = (
    'dropout', 'bn_momentum', 'bn_group_size', 'fc_layers', 'auxiliary', 'output_stride',
)  # fmt: skip


# Weights to start from.


def load(config: ConfigDict, shapes: dict[str, Tree]) -> tuple[dict[str, Tree], str]:
    """Reads `config.init.weights`.

    Layers of the head that are not there or of another shape are left to be drawn, and so is the
    classifier with `config.init.new_head`; all else has to fit.

    Args:
      config: the run's config.
      shapes: the network's variables {'params', 'batch_stats'}, or their shapes and types.

    Returns:
      The variables, with None for what is to be drawn; and in words where they are from.

    Raises:
      UserError: they cannot be read, or are another network's.
    """
    from xception_flax.pretrained import load_pretrained  # it, too, builds upon training's modules

    path = config.init.weights
    _, variables, trained = load_pretrained(path, new_head=config.init.new_head)
    _check_network(path, trained, config)
    there, wanted = _arrays(variables), _arrays(shapes)
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
    drawn = [layer for layer in sorted(new) if any(_head_layer(key) == layer for key in wanted)]
    report = f'starting from {path}' + (f'; drawn anew: {", ".join(drawn)}' if drawn else '')
    return {**shapes, **unflatten_dict(loaded, sep='/')}, report


def _check_network(path: str, trained: ConfigDict, config: ConfigDict) -> None:
    """Checks that weights are those of the config's network.

    Raises:
      UserError: they are not; says what the config would have to be.
    """
    name = config.model
    settings = ['model', 'preprocessing']
    if trained.model == name:
        settings += [f'{name}.{option}' for option in config[name] if option not in FREE_OPTIONS]
    different = [setting for setting in settings if trained[setting] != config[setting]]
    if different:
        flags = [shlex.quote(f'--config.{setting}={trained[setting]}') for setting in different]
        raise UserError(
            f'{path} was trained with another network than the config says: give {" ".join(flags)}'
        )


def _arrays(variables: dict[str, Tree]) -> dict[str, Any]:
    """Arrays by their path, such as 'params/logits/kernel'."""
    return flatten_dict(variables, sep='/')


def _head_layer(key: str) -> str | None:
    """The layer of the head that an array belongs to: 'fc1', 'logits', 'aux/conv1'; or None."""
    match = HEAD.match(key.partition('/')[2])
    return match[1] if match else None


# Frozen parts.


def frozen_modules(config: ConfigDict, model: nn.Module) -> tuple[str, ...]:
    """The paths of the modules of `model` that `config.frozen` names.

    Raises:
      UserError: there is no such module, or nothing is left to learn.
    """
    keys = _parameters(model, config.image_size)
    known = {key[: slash.start()]: None for key in keys for slash in re.finditer('/', key)}
    found: list[str] = []
    for name in filter(None, (name.strip(' /') for name in config.frozen.split(','))):
        if name == TRUNK:
            found += [key.partition('/')[0] for key in keys if not HEAD.match(key)]
        elif name in known:
            found.append(name)
        else:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f'config.frozen: {config.model} has no part {name!r}'
                + nearest(
                    name, close or [TRUNK, *(module for module in known if '/' not in module)]
                )
            )
    frozen = tuple(dict.fromkeys(found))
    if all(_within(key, frozen) for key in keys):
        raise UserError(f'config.frozen is {config.frozen!r}, which leaves nothing to learn')
    return frozen


def split(tree: Tree, frozen: Sequence[str]) -> tuple[Tree, Tree]:
    """Splits parameters or statistics into what learns and what is frozen.

    Args:
      tree: arrays by module.
      frozen: paths of the frozen modules.

    Returns:
      Two trees like the first, each with None in the places of the other.
    """

    def part(of_frozen: bool) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if _within('/'.join(_names(path)), frozen) == of_frozen else None,
            tree,
        )

    return part(False), part(True)


def join(tree: Tree, other: Tree) -> Tree:
    """The first tree, with the other's arrays where it has None."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, tree, other, is_leaf=lambda x: x is None
    )


def frozen_batch_norm(frozen: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """While it lasts, batch norm in frozen modules works as in inference, in training too."""

    def intercept(method, args, kwargs, context):
        module = context.module
        if (
            isinstance(module, BatchNorm)
            and context.method_name == '__call__'
            and _within('/'.join(module.path), frozen)
        ):
            call = inspect.signature(method).bind(*args, **kwargs)
            call.arguments['train'] = False
            args, kwargs = call.args, call.kwargs
        return method(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(f'{path}/'.startswith(f'{module}/') for module in modules)


def _names(path: Sequence[Any]) -> list[str]:
    return [part.key for part in path]


# Learning rates by depth.


def layer_multipliers(config: ConfigDict, model: nn.Module) -> dict[str, float]:
    """What the learning rate of each block is multiplied by, as in BEiT: layer_decay ** depth.

    A block is a module at the top of the network, such as 'fc1' or 'mixed3', or in a flow, such as
    'middle_flow/block2'. Its depth is the number of blocks called after it, the classifier being
    the last; an auxiliary classifier has depth 0 and does not count.
    """
    called: dict[str, None] = {}

    def note(method, args, kwargs, context):
        if context.module.path:
            called[_block(context.module.path)] = None
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        blocks = {_block(key.split('/')) for key in _parameters(model, config.image_size)}
    order = [block for block in called if block in blocks and block != 'aux']
    depths = {block: depth for depth, block in enumerate(reversed(order))}
    return {block: config.optimizer.layer_decay ** depths.get(block, 0) for block in blocks}


def scale_by_layer(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by `layer_multipliers`."""

    def scale(updates, _):
        return jax.tree_util.tree_map_with_path(
            lambda path, update: update * multipliers[_block(_names(path))], updates
        )

    return optax.stateless(scale)


def _parameters(model: nn.Module, image_size: int) -> list[str]:
    """The paths of a network's parameters; calls it, to learn their shapes only."""
    x = jnp.zeros((1, image_size, image_size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return list(flatten_dict(variables['params'], sep='/'))


def _block(path: Sequence[str]) -> str:
    return '/'.join(path[: 2 if path[0].endswith('_flow') else 1])
