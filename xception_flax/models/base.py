"""What all networks have in common: the checks of their options, and the contract of a call."""

import functools
import math
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax.models import layers

# The modules behind the features: fully connected layers, classifier, auxiliary classifier.
HEAD = re.compile(r'(fc\d*|logits|aux/\w+)/')

# Lowest and highest values of the options that several networks have.
RANGES = {
    'num_classes': (1, 10**6),
    'head_bias': (-100, 100),
    'width': (1 / 64, 64),
    'middle_repeats': (0, 1000),
    'dropout': (0, 0.999),
    'bn_momentum': (0, 1),
    'bn_epsilon': (1e-12, 1),
    'bn_group_size': (0, 10**9),
}


class Network(nn.Module):
    """A classifier of images: features, then a head.

    A network defines `features`, its options as attributes, and what these may be as `CHOICES`. The
    options named in `head` and `norm` mean the same in every network that has them.

    Attributes:
      num_classes: number of classes.
      dtype: compute type; parameters, statistics and logits are float32, or float64 if `dtype` is.
      head_bias: initial bias of the classifier. A sigmoid over thousands of classes, of which few
        are true, starts well below zero (big_vision takes -10): at zero its loss is log 2 for each.
    """

    CHOICES: ClassVar[dict[str, tuple]] = {}
    # Whether the head takes the flattened features, as networks before 2014 do, and not their mean.
    FLAT_HEAD: ClassVar[bool] = False
    # Smallest side of an image, where it does not depend on the options.
    MIN_IMAGE_SIZE: ClassVar[int] = 32

    num_classes: int = 1000
    dtype: Any = jnp.float32
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has an impossible value.
        """
        self.check_options()
        super().__post_init__()

    def check_options(self) -> None:
        """Checks the options by `CHOICES` and `RANGES`; a network may add its own checks.

        Raises:
          ValueError: an option has an impossible value.
        """
        for name, values in self.CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f'{name} is {getattr(self, name)!r}; choose from {values}')
        for name, (low, high) in RANGES.items():
            value = getattr(self, name, low)
            if not low <= value <= high:
                raise ValueError(f'{name} is {value}; it must be between {low} and {high}')
        fc_layers = getattr(self, 'fc_layers', ())
        if not all(isinstance(features, int) and features > 0 for features in fc_layers):
            raise ValueError(f'fc_layers is {fc_layers}; give whole numbers above 0')

    @property
    def min_image_size(self) -> int:
        """Smallest side of an image that the network takes, in pixels."""
        return self.MIN_IMAGE_SIZE

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features_only: bool = False
    ) -> jax.Array | layers.EndPoints:
        """Classifies images.

        Args:
          x: images, `[N, H, W, 3]`, in [-1, 1].
          train: whether to normalise by batch statistics (updating `batch_stats`) and to apply
            dropout (drawing from the rng stream 'dropout').
          features_only: whether to leave the head out.

        Returns:
          Logits, `[N, num_classes]`, float32 (float64 if `dtype` is); with `features_only` the
          last features of each resolution, by name (see `models.end_points`).

        Raises:
          ValueError: the images are smaller than `min_image_size`.
        """
        if min(x.shape[1:3]) < self.min_image_size:
            raise ValueError(
                f'images of {x.shape[1]}x{x.shape[2]} are too small: {type(self).__name__} takes '
                f'{self.min_image_size} pixels or more'
            )
        ends = self.features(x.astype(self.dtype), train, features_only)
        return ends if features_only else self.head(list(ends.values())[-1], train)

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to the last features of each resolution, finest first.

        Unless `features_only`, only the last entry is used.
        """
        raise NotImplementedError

    def head(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps the last features, `[N, H, W, C]`, to logits, `[N, num_classes]`.

        Reads the options `fc_layers` (widths of fully connected layers before the classifier, each
        followed by ReLU) and `dropout` (rate before the classifier; in a flat head, after each
        fully connected layer).
        """
        drop = nn.Dropout(getattr(self, 'dropout', 0.0), deterministic=not train)
        wide = layers.wide(self.dtype)
        flat = x.shape[0], math.prod(x.shape[1:])
        x = x.reshape(flat) if self.FLAT_HEAD else jnp.mean(x, (1, 2), dtype=wide)
        for i, features in enumerate(getattr(self, 'fc_layers', ()), start=1):
            x = nn.relu(layers.dense(features, self.dtype, name=f'fc{i}')(x))
            x = drop(x) if self.FLAT_HEAD else x
        x = x if self.FLAT_HEAD else drop(x)
        return layers.classifier(self.num_classes, self.dtype, self.head_bias)(x)

    def norm(self, use_scale: bool = True) -> layers.Module:
        """Makes a constructor of batch norm, with a learned scale or without.

        Reads the options `bn_momentum` (fraction of the running statistics that a step keeps),
        `bn_epsilon` (added to the variance) and `bn_group_size` (images that share batch
        statistics; 0 for the whole global batch).
        """
        options: Any = self
        return functools.partial(
            layers.BatchNorm,
            options.bn_momentum,
            options.bn_epsilon,
            use_scale,
            options.bn_group_size,
            self.dtype,
        )


def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Shapes and types of a network's variables, `jax.ShapeDtypeStruct`; computes nothing."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)


def head_layer(path: str) -> str | None:
    """The layer of the head that a parameter such as 'logits/kernel' belongs to, or None."""
    match = HEAD.match(path)
    return match[1] if match else None
