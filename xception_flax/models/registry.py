"""The networks by name, and how one is made."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError, nearest
from xception_flax.models.aligned_xception import AlignedXception, Xception41, Xception71
from xception_flax.models.base import Network
from xception_flax.models.history import AlexNet, LeNet5
from xception_flax.models.inception_v3 import InceptionV3
from xception_flax.models.resnet import ResNet
from xception_flax.models.vgg16 import VGG16
from xception_flax.models.xception import Xception

MODELS: dict[str, type[Network]] = {
    'xception': Xception,
    'xception41': Xception41,
    'xception65': AlignedXception,
    'xception71': Xception71,
    'inception_v3': InceptionV3,
    'vgg16': VGG16,
    'resnet152': ResNet,
    'alexnet': AlexNet,
    'lenet5': LeNet5,
}

# Fields that are not options of a network: flax's, and those that the data and the run set.
_NOT_OPTIONS = frozenset({'parent', 'name', 'num_classes', 'dtype'})


def options(name: str) -> dict[str, Any]:
    """The options of the network `name`, with their defaults.

    Raises:
      UserError: there is no such network.
    """
    fields = dataclasses.fields(_lookup(name))
    return {field.name: field.default for field in fields if field.name not in _NOT_OPTIONS}


def create_model(name: str, num_classes: int = 1000, **kwargs: Any) -> Network:
    """Makes a network.

    `model.init(rng, x, train=False)` and `model.apply(variables, x, train=...)` take images `x`
    `[N, H, W, 3]` in [-1, 1]; the result is logits, `[N, num_classes]`.

    Args:
      name: one of `MODELS`, such as 'xception'.
      num_classes: number of classes.
      **kwargs: the network's options (for Xception, the attributes of `models.xception.Xception`)
        and `dtype`, the compute type.

    Raises:
      UserError: there is no such network or option, or an option has an impossible value.
    """
    model = _lookup(name)
    known = [*options(name), 'dtype']
    for key in kwargs:
        if key not in known:
            raise UserError(f'{name} has no option {key!r}{nearest(key, known)}')
    try:
        return model(num_classes=num_classes, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f'{name}: {error}') from error


def build_model(config: ConfigDict, num_classes: int) -> Network:
    """Makes the network `config.model`, with the options in the section of its name.

    Raises:
      UserError: an option has an impossible value.
    """
    chosen = {key: config[config.model][key] for key in config[config.model]}
    return create_model(config.model, num_classes, dtype=jnp.dtype(config.dtype), **chosen)


def end_points(model: Network) -> dict[str, tuple[int, int]]:
    """The features that `model.apply(variables, x, features_only=True)` gives, finest first.

    They are the last ones of each resolution, and those that the head starts from.

    Returns:
      For each name the stride of the features, in pixels of the image, and their channels.
    """
    names: list[str] = []  # in the order of the calls, which jax.eval_shape would sort

    def shapes(size: int) -> list[jax.ShapeDtypeStruct]:
        def features() -> list[jax.Array]:
            x = jnp.zeros((1, size, size, 3))
            found, _ = model.init_with_output(jax.random.key(0), x, features_only=True)
            names[:] = found
            return list(found.values())

        return jax.eval_shape(features)

    # Padding and rounding aside, a side grows with the image's: by one for each stride.
    size, more = model.min_image_size, 64
    found = zip(shapes(size), shapes(size + more), strict=True)
    strides = [(more // (b.shape[1] - a.shape[1]), a.shape[-1]) for a, b in found]
    return dict(zip(names, strides, strict=True))


def name_of(model: nn.Module) -> str:
    """The name of a network's class in `MODELS`."""
    for name, kind in MODELS.items():
        if type(model) is kind:
            return name
    raise UserError(f'{type(model).__name__} is none of the networks here: {sorted(MODELS)}')


def _lookup(name: str) -> type[Network]:
    if name not in MODELS:
        raise UserError(f'there is no network {name!r}{nearest(name, MODELS)}')
    return MODELS[name]
