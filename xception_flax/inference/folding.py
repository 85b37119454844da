"""Batch norm as part of the convolutions before it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from xception_flax.models.layers import BatchNorm, DepthwiseConv

Path = tuple[str, ...]


def fold_batch_norm(model: nn.Module, variables: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Multiplies kernels by what batch norm would multiply their outputs by.

    Each batch norm that follows a convolution directly is then the addition of a bias, and has no
    statistics. In inference the network computes the same, but for rounding.

    Args:
      model: the network.
      variables: its variables.
      image_size: side of a picture that it takes, in pixels.

    Returns:
      Variables for `model.apply(..., train=False)`.
    """
    params = traverse_util.flatten_dict(dict(variables['params']))
    stats = traverse_util.flatten_dict(dict(variables.get('batch_stats', {})))
    for norm, (conv, epsilon) in _followed_by_batch_norm(model, variables, image_size).items():
        mean, var = stats.pop((*norm, 'mean')), stats.pop((*norm, 'var'))
        multiplier = params.pop((*norm, 'scale'), 1.0) / jnp.sqrt(var + epsilon)
        params[*norm, 'folded_bias'] = params.pop((*norm, 'bias')) - mean * multiplier
        for name in ('kernel', 'bias'):  # whose last axis is that of the outputs
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
    """The convolution before each batch norm that has nothing between them, and its epsilon."""
    outputs: list[tuple[Any, Path]] = []
    found: dict[Path, tuple[Path, float]] = {}

    def watch(call, args, kwargs, context):
        module = context.module
        result = call(*args, **kwargs)
        if isinstance(module, nn.Conv | DepthwiseConv):
            outputs.append((result, module.path))
        elif isinstance(module, BatchNorm):
            for output, conv in outputs:
                if output is args[0]:
                    found[module.path] = conv, module.epsilon
        return result

    pictures = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, pictures)
    return found
