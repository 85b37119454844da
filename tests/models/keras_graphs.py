"""Copies the weights of any Keras graph of convolutions, batch norms and dense layers to ours."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np

from xception_flax.models import layers

KINDS = (
    (nn.Conv, keras.layers.Conv2D),
    (nn.Dense, keras.layers.Dense),
    (layers.BatchNorm, keras.layers.BatchNormalization),
)


def our_paths(model: nn.Module, size: int) -> dict[type, list[tuple[str, ...]]]:
    """The paths of our convolutions, dense layers and batch norms, in the order of their calls."""
    found: dict[type, list[tuple[str, ...]]] = {kind: [] for kind, _ in KINDS}

    def note(call, args, kwargs, context):
        for kind in found:
            if isinstance(context.module, kind) and context.method_name == '__call__':
                found[kind].append(context.module.path)
        return call(*args, **kwargs)

    x = jnp.zeros((1, size, size, 3))
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return found


def pairs(ours: nn.Module, theirs: keras.Model, size: int):
    """Our paths with Keras's layers. Keras's names are numbered in the order of their making."""
    paths = our_paths(ours, size)
    for kind, keras_kind in KINDS:
        same = [layer for layer in theirs.layers if type(layer) is keras_kind]
        same.sort(key=lambda layer: [int(n) for n in re.findall(r'\d+', layer.name)])
        yield from zip(paths[kind], same, strict=True)


def from_keras(ours: nn.Module, theirs: keras.Model, size: int) -> dict:
    """The Keras model's weights as our variables."""
    variables: dict = {'params': {}, 'batch_stats': {}}
    names = {
        'kernel': ('params', 'kernel'),
        'bias': ('params', 'bias'),
        'gamma': ('params', 'scale'),
        'beta': ('params', 'bias'),
        'moving_mean': ('batch_stats', 'mean'),
        'moving_variance': ('batch_stats', 'var'),
    }
    for path, layer in pairs(ours, theirs, size):
        for weight in layer.weights:
            collection, name = names[weight.name]
            tree = variables[collection]
            for key in path:
                tree = tree.setdefault(key, {})
            tree[name] = np.asarray(weight)
    return {key: tree for key, tree in variables.items() if tree}


def randomise(theirs: keras.Model, rng: np.random.Generator) -> None:
    """Gives biases and batch norms values at random."""
    for layer in theirs.layers:
        for weight in layer.weights:
            if weight.name in ('bias', 'beta', 'moving_mean'):
                weight.assign(rng.normal(0, 0.1, weight.shape))
            elif weight.name in ('gamma', 'moving_variance'):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
