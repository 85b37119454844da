"""Learning rates that shrink with the distance from the classifier (Bao et al., BEiT, 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from xception_flax.models import abstract_variables


def layer_multipliers(config: ConfigDict, model: nn.Module) -> dict[str, float]:
    """The factor of the learning rate of each block: layer_decay ** depth.

    A block is a module at the top of the network, such as 'fc1' or 'mixed3', or in a flow, such as
    'middle_flow/block2'. Its depth is the number of blocks called after it, the classifier being
    the last; an auxiliary classifier has depth 0 and is not counted.
    """
    called: dict[str, None] = {}

    def note(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == '__call__' and context.module.path:
            called[_block(context.module.path)] = None
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        params = abstract_variables(model, config.image_size)['params']
    blocks = {_block(key) for key in flatten_dict(params)}
    order = [block for block in called if block in blocks and block != 'aux']
    depths = {block: depth for depth, block in enumerate(reversed(order))}
    return {block: config.optimizer.layer_decay ** depths.get(block, 0) for block in blocks}


def scale_by_layer(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by `layer_multipliers`."""

    def scale(updates: optax.Updates, _: Any) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(
            lambda path, update: update * multipliers[_block([part.key for part in path])], updates
        )

    return optax.stateless(scale)


def _block(path: Sequence[str]) -> str:
    return '/'.join(path[: 2 if path[0].endswith('_flow') else 1])
