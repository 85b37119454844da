"""Helper of the parity tests: copies weights from a Keras graph of Xception to ours."""

import jax
import keras
import numpy as np
from keras import layers


def units(model: keras.Model) -> list[tuple[str, keras.Layer, keras.Layer | None]]:
    """Our path, Keras's convolution or dense layer, and the batch norm that follows it.

    Keras numbers its shortcut layers by a global counter, so their 1x1 kernel identifies them. All
    other layers are in the order of the graph.
    """
    convs, shortcuts, sepconvs = [], [], []
    for layer in model.layers:
        if isinstance(layer, layers.SeparableConv2D):
            sepconvs.append(layer)
        elif isinstance(layer, layers.Conv2D):
            (shortcuts if layer.kernel_size == (1, 1) else convs).append(layer)
    blocks = [f'entry_flow/block{i}' for i in (1, 2, 3)]
    paths = [f'{block}/sepconv{i}' for block in blocks for i in (1, 2)]
    paths += [f'middle_flow/block{b}/sepconv{i}' for b in range(1, 9) for i in (1, 2, 3)]
    paths += ['exit_flow/block1/sepconv1', 'exit_flow/block1/sepconv2']
    paths += ['exit_flow/sepconv3', 'exit_flow/sepconv4']
    named = dict(zip(paths, sepconvs, strict=True))
    named |= zip(('entry_flow/conv1', 'entry_flow/conv2'), convs, strict=True)
    blocks.append('exit_flow/block1')
    named |= zip((f'{block}/shortcut' for block in blocks), shortcuts, strict=True)
    found = [(path, layer, layer._outbound_nodes[0].operation) for path, layer in named.items()]
    return [*found, ('logits', model.layers[-1], None)]


def from_keras(model: keras.Model) -> dict:
    """The Keras model's weights as our variables."""
    params: dict = {}
    stats: dict = {}
    for path, layer, bn in units(model):
        unit = _descend(params, path)
        if isinstance(layer, layers.SeparableConv2D):
            depthwise, pointwise = (np.asarray(w) for w in layer.weights)
            unit['depthwise'] = {'kernel': depthwise.transpose(0, 1, 3, 2)}
            unit['pointwise'] = {'kernel': pointwise}
        elif isinstance(layer, layers.Conv2D):
            unit['conv'] = {'kernel': np.asarray(layer.kernel)}
        else:
            unit |= {'kernel': np.asarray(layer.kernel), 'bias': np.asarray(layer.bias)}
        if bn is not None:
            unit['bn'] = {'scale': np.asarray(bn.gamma), 'bias': np.asarray(bn.beta)}
            mean, var = np.asarray(bn.moving_mean), np.asarray(bn.moving_variance)
            _descend(stats, path)['bn'] = {'mean': mean, 'var': var}
    return {'params': params, 'batch_stats': stats}


def randomise(model: keras.Model, variables: dict, rng: np.random.Generator) -> None:
    """Gives the Keras model the running statistics of `variables`, and random scales and biases."""
    for path, _, bn in units(model):
        if bn is not None:
            stats = _descend(variables['batch_stats'], path)['bn']
            shape = bn.gamma.shape
            bn.gamma.assign(rng.uniform(0.5, 1.5, shape))
            bn.beta.assign(rng.normal(0, 0.2, shape))
            bn.moving_mean.assign(stats['mean'])
            bn.moving_variance.assign(stats['var'])


def difference(ours, theirs) -> float:
    """The largest difference between two trees, relative to each array's largest element."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / max(np.max(np.abs(b)), 1e-12))
        for a, b in pairs
    )


def _descend(tree: dict, path: str) -> dict:
    for key in path.split('/'):
        tree = tree.setdefault(key, {})
    return tree
