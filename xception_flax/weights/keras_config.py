"""What the configuration in a file of Keras says of a model, apart from its weights."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from xception_flax import models
from xception_flax.weights.arrays import Said

WEIGHTS, CONFIG = 'model.weights.h5', 'config.json'  # members of a .keras file

Layer = dict[str, Any]  # as Keras saves it: 'class_name', 'config', 'inbound_nodes'

# How `Rescaling` and arithmetic map pixels, as (scale, offset), by name in `config.preprocessing`.
SCALES = {'tf': (1 / 127.5, -1.0), 'unit': (1 / 255, 0.0)}
ARITHMETIC = ('TrueDivide', 'Divide', 'Multiply', 'Subtract', 'Add', 'TFOpLambda')
# Layers that do nothing at inference; so do those whose name begins with 'Rand'.
IDLE = (
    'InputLayer', 'Dropout', 'SpatialDropout2D', 'GaussianDropout', 'GaussianNoise', 'Identity',
    'ActivityRegularization', 'AugMix', 'MixUp', 'CutMix',
)  # fmt: skip
CONVOLUTIONS = ('Conv2D', 'Convolution2D', 'SeparableConv2D', 'SeparableConvolution2D')
POOLING = ('GlobalAveragePooling2D', 'GlobalMaxPooling2D', 'Flatten')
# What else the trunks of Keras's networks are made of.
IN_TRUNK = (
    'BatchNormalization', 'Activation', 'ReLU', 'MaxPooling2D', 'AveragePooling2D', 'ZeroPadding2D',
    'Add', 'Concatenate', 'Merge',
)  # fmt: skip
CAFFE = (103.939, 116.779, 123.68)  # what `preprocess_input` of VGG and ResNet takes from BGR
# Losses, by the ending of their names without underscores.
LOSSES = {
    'categoricalcrossentropy': 'softmax', 'categoricalfocalcrossentropy': 'softmax',
    'binarycrossentropy': 'sigmoid', 'binaryfocalcrossentropy': 'sigmoid',
}  # fmt: skip
# Layers with a stride in Keras's network.
STRIDED = {'xception': 9, 'inception_v3': 9, 'resnet152': 8, 'vgg16': 5}


def read(network: str, model: dict[str, Any], training: dict[str, Any]) -> Said:
    """Reads the configuration of a model.

    Args:
      network: our name of the network that its weights belong to.
      model: its configuration, as Keras saves it; {} if the file has none.
      training: how it was compiled; {} if the file does not say.
    """
    said = Said()
    try:
        layers = list(flatten(model)) if model else []
        places = [i for i, layer in enumerate(layers) if layer['class_name'] in CONVOLUTIONS]
        if not places:
            return said
        # The trunk ends where its features are pooled.
        end = next((i for i in range(places[-1], len(layers)) if _in_head(layers[i])), len(layers))
        _read_images(layers[: places[0]], said)
        _read_trunk(network, layers[places[0] : end], said)
        _read_head(models.MODELS[network].FLAT_HEAD, layers[end:], training, said)
        if (outputs := _outputs(model)) > 1:
            said.head_problems.append(f'it has {outputs} outputs')
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        said.problems.append(f'its configuration is damaged ({reason})')
    return said


def flatten(model: Layer) -> Iterator[Layer]:
    """The layers of a model and of the models in it, in order."""
    config = model['config']
    inner = config if isinstance(config, list) else config.get('layers')
    if inner is None:
        yield model
        return
    for layer in inner:
        yield from flatten(layer)


def _outputs(model: Layer) -> int:
    """The number of outputs of a model; 1 for a `Sequential`."""
    config = model['config']
    found = config.get('output_layers', []) if isinstance(config, dict) else []
    return len(found) if isinstance(found, dict) or (found and isinstance(found[0], list)) else 1


def _in_head(layer: Layer) -> bool:
    return layer['class_name'] in (*POOLING, 'Dense')


def _idle(layer: Layer) -> bool:
    return layer['class_name'] in IDLE or layer['class_name'].startswith('Rand')


def _read_images(layers: Sequence[Layer], said: Said) -> None:
    """Reads what happens before the first convolution."""
    scale, offset, scaled = 1.0, 0.0, False
    if _is_caffe(layers):
        said.settings['preprocessing'] = 'caffe'
        layers = [layer for layer in layers if _idle(layer)]
    for layer in layers:
        kind, config = layer['class_name'], layer['config']
        if kind == 'Rescaling':
            factor, term = config['scale'], config['offset']
        elif kind in ARITHMETIC:
            factor, term = _arithmetic(layer)
        elif _idle(layer) or kind == 'ZeroPadding2D':
            continue
        else:
            factor, term = None, None
        if not (isinstance(factor, int | float) and isinstance(term, int | float)):
            said.problems.append(f'its layer {config.get("name")!r} ({kind}) changes the images')
            return
        scale, offset, scaled = scale * factor, offset * factor + term, True
    inputs = [layer['config'] for layer in layers if layer['class_name'] == 'InputLayer']
    shape = next((c.get('batch_shape') or c.get('batch_input_shape') for c in inputs), None)
    if shape and shape[1:3] != [None, None]:
        said.settings['image_size'] = shape[1]
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            said.problems.append(f'it takes images of {shape[1:]}; networks here take [S, S, 3]')
    if scaled:
        found = [m for m, s in SCALES.items() if math.dist(s, (scale, offset)) < 1e-6]
        if found:
            said.settings['preprocessing'] = found[0]
        else:
            said.problems.append(f'it scales pixels by {scale:g} and adds {offset:g}')


def _is_caffe(layers: Sequence[Layer]) -> bool:
    """Whether images become BGR minus a mean, as in `preprocess_input` of VGG and ResNet."""
    kinds = [x for x in layers if not _idle(x) and x['class_name'] != 'ZeroPadding2D']
    if [x['class_name'] for x in kinds] != ['GetItem', 'GetItem', 'GetItem', 'Stack', 'Add']:
        return False
    channels = [x['inbound_nodes'][0]['args'][1][-1] for x in kinds[:3]]
    value = kinds[-1]['inbound_nodes'][0]['args'][1]['config']['value']
    while len(value) == 1:
        value = value[0]
    return channels == [2, 1, 0] and math.dist(value, [-x for x in CAFFE]) < 1e-3


def _arithmetic(layer: Layer) -> tuple[float | None, float | None]:
    """The factor and the term of arithmetic with a number; None if it is of another kind."""
    kind = layer['class_name']
    try:
        if kind == 'TFOpLambda':  # of Keras 2
            kind = {'truediv': 'Divide', 'subtract': 'Subtract', 'multiply': 'Multiply'}[
                layer['config']['function'].rpartition('.')[2]
            ]
            value = layer['inbound_nodes'][0][3]['y']
        else:
            value = layer['inbound_nodes'][0]['args'][1]
        return {
            'TrueDivide': lambda: (1 / value, 0.0),
            'Divide': lambda: (1 / value, 0.0),
            'Multiply': lambda: (value, 0.0),
            'Subtract': lambda: (1.0, -value),
            'Add': lambda: (1.0, value),
        }[kind]()
    except (KeyError, IndexError, TypeError, ZeroDivisionError):
        return None, None


def _plain(layer: Layer) -> bool:
    """Whether a layer, if it is a `ReLU`, cuts off below 0 and does nothing else."""
    config = layer['config']
    slopes = config.get('negative_slope'), config.get('threshold')
    return layer['class_name'] != 'ReLU' or not (config.get('max_value') or any(slopes))


def _read_trunk(network: str, layers: Sequence[Layer], said: Said) -> None:
    """Reads the epsilon of batch norm, and looks for what our network does not do."""
    configs = [layer['config'] for layer in layers]
    epsilons = {c.get('epsilon') for c in configs if 'epsilon' in c}
    if len(epsilons) == 1:
        said.options['bn_epsilon'] = epsilons.pop()
    elif epsilons:
        said.problems.append(f'its batch norms have epsilons of {sorted(epsilons)}')
    strange = [
        f'{layer["config"].get("name")!r} ({layer["class_name"]})'
        for layer in layers
        if (layer['class_name'] not in (*CONVOLUTIONS, *IN_TRUNK) and not _idle(layer))
        or not _plain(layer)
    ]
    if strange:
        said.problems.append(f"Keras's network has no layer like {', '.join(strange[:3])}")
    activations = {str(c['activation']) for c in configs if 'activation' in c}
    if others := activations - {'relu', 'linear'}:
        said.problems.append(f'its activations are {sorted(others)}')
    if any(c.get('data_format') == 'channels_first' for c in configs):
        said.problems.append("its data format is 'channels_first'")
    strided = sum(set(c['strides']) != {1} for c in configs if c.get('strides'))
    dilated = any(set(c['dilation_rate']) != {1} for c in configs if c.get('dilation_rate'))
    if strided != STRIDED[network] or dilated:
        said.problems.append("its strides are not those of Keras's network")


def _read_head(flat: bool, layers: Sequence[Layer], training: Layer, said: Said) -> None:
    """Reads the head, which begins with pooling."""
    pooling: list[str] = []
    dense: list[list] = []  # name and activation of each dense layer
    for layer in layers:
        kind, config = layer['class_name'], layer['config']
        function = {'ReLU': 'relu', 'Softmax': 'softmax'}.get(kind, config.get('activation'))
        if kind == 'Dense' and len(layer.get('inbound_nodes', ())) < 2:
            dense.append([config['name'], function])
        elif kind in POOLING and not dense:
            pooling.append(kind)
        elif (
            kind in ('Activation', 'ReLU', 'Softmax')
            and _plain(layer)
            and dense
            and dense[-1][1] == 'linear'
        ):
            dense[-1][1] = function
        elif not _idle(layer):
            said.head_problems.append(f'its head has the layer {config.get("name")!r} ({kind})')
    if not dense:
        return
    # Flattening does nothing to what is pooled.
    if pooling != ['Flatten'] if flat else pooling[:1] != ['GlobalAveragePooling2D']:
        said.head_problems.append(
            f'its head starts with {pooling[0] if pooling else "no pooling"}, and here with '
            f'{"flattened features" if flat else "their mean"}'
        )
    for name, function in dense[:-1]:
        if function != 'relu':
            said.head_problems.append(f'its hidden layer {name!r} is {function!r}, not relu')
    function = dense[-1][1]
    if function == 'linear':  # the loss may tell
        compiled = str(training.get('loss') or '').lower().replace('_', '')
        function = next((ours for name, ours in LOSSES.items() if name in compiled), function)
        if compiled and function == 'linear':
            said.head_problems.append('it was trained for other values than probabilities')
    if function in ('softmax', 'sigmoid'):
        said.settings['loss'] = function
    elif function != 'linear':
        said.head_problems.append(f'its classifier has the activation {function!r}')
