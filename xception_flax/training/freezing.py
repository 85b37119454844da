"""Frozen modules: they keep their parameters and statistics and normalise as in inference."""

import contextlib
import difflib
import inspect
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError, nearest
from xception_flax.models import abstract_variables, head_layer
from xception_flax.models.layers import BatchNorm

Tree = Any

TRUNK = 'trunk'  # everything but the head
EVERYTHING = ('',)  # as paths of modules


def frozen_modules(config: ConfigDict, model: nn.Module) -> tuple[str, ...]:
    """The paths of the modules of `model` that `config.frozen` names.

    Raises:
      UserError: there is no such module, or nothing is left to train.
    """
    params = abstract_variables(model, config.image_size)['params']
    keys = list(flatten_dict(params, sep='/'))
    known = {key[: slash.start()]: None for key in keys for slash in re.finditer('/', key)}
    found: list[str] = []
    for name in filter(None, (name.strip(' /') for name in config.frozen.split(','))):
        if name == TRUNK:
            found += [key.partition('/')[0] for key in keys if not head_layer(key)]
        elif name in known:
            found.append(name)
        else:
            close = difflib.get_close_matches(name, known, n=1)
            top = [TRUNK, *(module for module in known if '/' not in module)]
            raise UserError(
                f'config.frozen: {config.model} has no module {name!r}{nearest(name, close or top)}'
            )
    frozen = tuple(dict.fromkeys(found))
    if all(_within(key, frozen) for key in keys):
        raise UserError(f'config.frozen is {config.frozen!r}, which leaves nothing to train')
    return frozen


def partition(tree: Tree, frozen: Sequence[str]) -> tuple[Tree, Tree]:
    """Separates parameters or statistics into trainable and frozen ones.

    Args:
      tree: arrays by module.
      frozen: paths of the frozen modules.

    Returns:
      Two trees like the first, each with None where the array is in the other.
    """

    def part(of_frozen: bool) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if _within(_path(path), frozen) == of_frozen else None, tree
        )

    return part(False), part(True)


def merge(tree: Tree, other: Tree) -> Tree:
    """The first tree, with arrays of the other where it has None."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, tree, other, is_leaf=lambda x: x is None
    )


def frozen_batch_norm(modules: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """A context in which batch norm of these modules uses its running statistics."""

    def intercept(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if (
            isinstance(module, BatchNorm)
            and context.method_name == '__call__'
            and _within('/'.join(module.path), modules)
        ):
            call = inspect.signature(method).bind(*args, **kwargs)
            call.arguments['train'] = False
            args, kwargs = call.args, call.kwargs
        return method(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(not module or f'{path}/'.startswith(f'{module}/') for module in modules)


def _path(path: Sequence[Any]) -> str:
    return '/'.join(part.key for part in path)
