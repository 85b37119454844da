"""Folds batch norm into the convolutions before it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from xception_flax import ops
from xception_flax.models.layers import BatchNorm, DepthwiseConv, PointwiseConv

Path = tuple[str, ...]


def fold_batch_norm(model: nn.Module, variables: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Multiplies kernels by the factors of the batch norm that follows them.

    Each batch norm directly after a convolution then only adds a bias and has no statistics.
    Inference gives the same outputs, up to rounding.

    Args:
      model: the network.
      variables: its variables.
      image_size: side of its images, in pixels.

    Returns:
      Variables for `model.apply(..., train=False)`.
    """
    params = traverse_util.flatten_dict(dict(variables['params']))
    stats = traverse_util.flatten_dict(dict(variables.get('batch_stats', {})))
    for norm, (conv, epsilon) in _followed_by_batch_norm(model, variables, image_size).items():
        mean, var = stats.pop((*norm, 'mean')), stats.pop((*norm, 'var'))
        multiplier = params.pop((*norm, 'scale'), 1.0) / jnp.sqrt(var + epsilon)
        params[*norm, 'folded_bias'] = params.pop((*norm, 'bias')) - mean * multiplier
        for name in ('kernel', 'bias'):  # the last axis is the output channels
            if (*conv, name) in params:
                params[*conv, name] = params[*conv, name] * multiplier
    return {
        **variables,
        'params': traverse_util.unflatten_dict(params),
        'batch_stats': traverse_util.unflatten_dict(stats),
    }


def _followed_by_batch_norm(
    model: nn.Module, variables: Any, image_size: int
) -> dict[Path, tuple[Path, float]]:
    """The convolution directly before each batch norm, and the epsilon of that batch norm."""
    outputs: list[tuple[Any, Path]] = []
    found: dict[Path, tuple[Path, float]] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        result = call(*args, **kwargs)
        if isinstance(module, nn.Conv | DepthwiseConv | PointwiseConv):
            outputs.append((result, module.path))
        elif isinstance(module, BatchNorm):
            for output, conv in outputs:
                if output is args[0]:
                    found[module.path] = conv, module.epsilon
        return result

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    # In the reference implementation every layer is its own call.
    with nn.intercept_methods(watch), ops.lowerings('reference'):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    return found
