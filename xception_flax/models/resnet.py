"""ResNet (He et al., 2016), version 1, as `keras.applications.ResNet152`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax.models import layers
from xception_flax.models.layers import Module


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut.

    Attributes:
      features: channels of the first two; the third has four times as many.
      strides: stride of the first.
      project: whether the shortcut is a 1x1 convolution.
      conv: makes a convolution with batch norm.
    """

    features: int
    strides: int
    project: bool
    conv: Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, 4 * features]`."""
        shortcut = x
        if self.project:
            shortcut = self.conv(4 * self.features, 1, self.strides, name='shortcut')(x, train)
        y = nn.relu(self.conv(self.features, 1, self.strides, name='conv1')(x, train))
        y = nn.relu(self.conv(self.features, 3, name='conv2')(y, train))
        y = self.conv(4 * self.features, 1, name='conv3')(y, train)
        return nn.relu(shortcut + y)


class ResNet(nn.Module):
    """ResNet-152 with the defaults: 60,419,944 parameters and statistics for 1000 classes.

    Attributes:
      num_classes: number of logits.
      stages: blocks per stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate before the classifier.
      bn_momentum: share of the running statistics that a step keeps.
      bn_epsilon: added to the variance.
      bn_group_size: pictures that share batch statistics; 0 for the whole global batch.
      dtype: compute type; parameters, statistics and logits are float32, or float64 if it is.
    """

    num_classes: int = 1000
    stages: tuple[int, ...] = (3, 8, 36, 3)
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.0
    bn_momentum: float = 0.99
    bn_epsilon: float = 1.001e-5
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has a value that makes no network.
        """
        layers.check_options(self, {})
        if not self.stages or min(self.stages) < 1:
            raise ValueError(f'stages is {self.stages}; give whole numbers above 0')
        super().__post_init__()

    @property
    def min_image_size(self) -> int:
        """Smallest side of a picture that the network takes, in pixels (Keras: 32)."""
        return 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Classifies pictures.

        Args:
          x: pictures, `[N, H, W, 3]`, in [-1, 1].
          train: whether to normalise by batch statistics (updating `batch_stats`) and to drop out
            (drawing from the rng stream 'dropout').

        Returns:
          Logits, `[N, num_classes]`, float32 (float64 if `dtype` is).

        Raises:
          ValueError: the pictures are smaller than `min_image_size`.
        """
        layers.check_size(self, x)
        norm = functools.partial(
            layers.BatchNorm,
            self.bn_momentum,
            self.bn_epsilon,
            group_size=self.bn_group_size,
            dtype=self.dtype,
        )
        # Biases before batch norm have no effect; Keras has them.
        conv = functools.partial(layers.ConvBN, use_bias=True, norm=norm, dtype=self.dtype)

        x = x.astype(self.dtype)
        x = nn.relu(conv(64, 7, 2, ((3, 3), (3, 3)), name='conv1')(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, count in enumerate(self.stages, start=1):
            for i in range(1, count + 1):
                strides = 2 if i == 1 and stage > 1 else 1
                name = f'stage{stage}_block{i}'
                x = Bottleneck(32 * 2**stage, strides, i == 1, conv, name=name)(x, train)
        return layers.classify(
            x, self.num_classes, self.fc_layers, self.dropout, self.dtype, train
        )
