"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2016).

The graph is that of `keras.applications.ResNet152`, version 1, as in the paper; `variant='timm'` is
timm's and torchvision's, "v1.5", which takes the stride in the 3x3 convolution.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax.models import layers
from xception_flax.models.layers import Module

VARIANTS = ('keras', 'timm')


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut.

    Attributes:
      features: channels of the first two; the third has four times as many.
      strides: strides of the first and of the second.
      dilation: dilation of the second.
      project: whether the shortcut is a 1x1 convolution.
      conv: makes a convolution with batch norm.
    """

    features: int
    strides: tuple[int, int]
    dilation: int
    project: bool
    conv: Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H', W', 4 * features]`, smaller by both strides."""
        first, second = self.strides
        shortcut = x
        if self.project:
            shortcut = self.conv(4 * self.features, 1, first * second, name='shortcut')(x, train)
        y = nn.relu(self.conv(self.features, 1, first, name='conv1')(x, train))
        conv2 = self.conv(
            self.features, 3, second, self.dilation, dilation=self.dilation, name='conv2'
        )
        y = nn.relu(conv2(y, train))
        y = self.conv(4 * self.features, 1, name='conv3')(y, train)
        return nn.relu(shortcut + y)


class ResNet(nn.Module):
    """ResNet-152 with the defaults: 60,419,944 parameters and statistics for 1000 classes.

    Attributes:
      num_classes: number of logits.
      variant: 'keras' (convolutions with a bias; a stage's first 1x1 convolution has its stride) or
        'timm' (60,192,808 parameters: no biases; the 3x3 convolution has it; timm's weights want
        `bn_epsilon=1e-5`, too).
      stages: blocks per stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
      output_stride: stride of the last features: 32, or 16 or 8, for segmentation (see
        `layers.atrous`; the weights are the same).
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate before the classifier.
      bn_momentum: share of the running statistics that a step keeps.
      bn_epsilon: added to the variance.
      bn_group_size: pictures that share batch statistics; 0 for the whole global batch.
      dtype: compute type; parameters, statistics and logits are float32, or float64 if it is.
    """

    num_classes: int = 1000
    variant: str = 'keras'
    stages: tuple[int, ...] = (3, 8, 36, 3)
    output_stride: int = 32
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
        layers.check_options(self, {'variant': VARIANTS, 'output_stride': layers.OUTPUT_STRIDES})
        if not self.stages or min(self.stages) < 1:
            raise ValueError(f'stages is {self.stages}; give whole numbers above 0')
        super().__post_init__()

    @property
    def min_image_size(self) -> int:
        """Smallest side of a picture that the network takes, in pixels (Keras: 32)."""
        return 32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features_only: bool = False
    ) -> jax.Array | layers.EndPoints:
        """Classifies pictures.

        Args:
          x: pictures, `[N, H, W, 3]`, in [-1, 1].
          train: whether to normalise by batch statistics (updating `batch_stats`) and to drop out
            (drawing from the rng stream 'dropout').
          features_only: whether to leave the classifier out.

        Returns:
          Logits, `[N, num_classes]`, float32 (float64 if `dtype` is); with `features_only` the
          last features of each resolution, by name (see `models.end_points`).

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
        timm = self.variant == 'timm'
        # Biases before batch norm have no effect; Keras has them.
        conv = functools.partial(layers.ConvBN, use_bias=not timm, norm=norm, dtype=self.dtype)
        nominal = [2 if stage else 1 for stage in range(len(self.stages))]
        strides = layers.atrous((4, *nominal), self.output_stride)[1:]

        x = x.astype(self.dtype)
        x = nn.relu(conv(64, 7, 2, 3, name='conv1')(x, train))
        ends = {'conv1': x}
        x = layers.max_pool(x, symmetric=True)
        for stage, count in enumerate(self.stages, start=1):
            stride, dilation = strides[stage - 1]
            # What follows a stride that was traded is dilated: in the first block too, if it is
            # the 1x1 convolution's.
            after = dilation * nominal[stage - 1] // stride
            for i in range(1, count + 1):
                both = (1, stride) if timm else (stride, 1)
                block = Bottleneck(
                    32 * 2**stage,
                    both if i == 1 else (1, 1),
                    dilation if timm and i == 1 else after,
                    i == 1,
                    conv,
                    name=f'stage{stage}_block{i}',
                )
                x = block(x, train)
            ends[f'stage{stage}'] = x
        if features_only:
            return ends
        return layers.classify(x, self.num_classes, self.fc_layers, self.dropout, self.dtype, train)
