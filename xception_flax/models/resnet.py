"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2016).

The graph is that of `keras.applications.ResNet152`, version 1, as in the paper; `variant='timm'` is
that of timm and torchvision, "v1.5", which has the strides in the 3x3 convolutions.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax

from xception_flax.models import layers
from xception_flax.models.base import Network
from xception_flax.models.layers import Module

VARIANTS = ('keras', 'timm')


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut.

    Attributes:
      features: channels of the first two convolutions; the third has 4 * `features`.
      strides: strides of the first two.
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


class ResNet(Network):
    """ResNet-152 with the defaults: 60,419,944 parameters and statistics for 1000 classes.

    Attributes:
      variant: 'keras' (convolutions with bias; strides in 1x1 convolutions) or 'timm' (60,192,808
        parameters: no biases; strides in 3x3 convolutions; timm's weights need `bn_epsilon=1e-5`,
        too).
      stages: blocks per stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
      output_stride: stride of the last features: 32, or 16 or 8, for segmentation (see
        `layers.atrous`; the weights are the same).
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate before the classifier.
      bn_momentum, bn_epsilon, bn_group_size: options of batch norm, see `Network.norm`.
    """

    CHOICES: ClassVar = {'variant': VARIANTS, 'output_stride': layers.OUTPUT_STRIDES}

    variant: str = 'keras'
    stages: tuple[int, ...] = (3, 8, 36, 3)
    output_stride: int = 32
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.0
    bn_momentum: float = 0.99
    bn_epsilon: float = 1.001e-5
    bn_group_size: int = 0

    def check_options(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has an impossible value.
        """
        super().check_options()
        if not self.stages or min(self.stages) < 1:
            raise ValueError(f'stages is {self.stages}; give whole numbers above 0')

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        timm = self.variant == 'timm'
        # Biases before batch norm have no effect; Keras has them.
        conv = functools.partial(
            layers.ConvBN, use_bias=not timm, norm=self.norm(), dtype=self.dtype
        )
        nominal = [2 if stage else 1 for stage in range(len(self.stages))]
        strides = layers.atrous((4, *nominal), self.output_stride)[1:]

        x = nn.relu(conv(64, 7, 2, 3, name='conv1')(x, train))
        ends = {'conv1': x}
        x = layers.max_pool(x, symmetric=True)
        for stage, count in enumerate(self.stages, start=1):
            stride, dilation = strides[stage - 1]
            # Convolutions after a stride that was traded for dilation are dilated; in the first
            # block, too, if the stride was in its 1x1 convolution.
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
        return ends
