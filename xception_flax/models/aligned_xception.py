"""The aligned Xception, a backbone for segmentation and detection.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation"
(DeepLabv3+, 2018), Figure 4, after Qi et al.'s detector of 2017: deeper than Xception, separable
convolutions with a stride in place of its max pools, batch norm between depthwise and pointwise
convolutions. The graph is that of DeepLab's code and of timm's `xception41`, `65` and `71` (numbers
of convolutions). Padding is symmetric, so features stay aligned to the same pixels at every output
stride.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax

from xception_flax.models import layers
from xception_flax.models.base import Network
from xception_flax.models.layers import Parts
from xception_flax.models.xception import MiddleFlow


class Block(nn.Module):
    """Three separable convolutions, each after a ReLU, beside a 1x1 projection.

    Attributes:
      features: output channels of the three separable convolutions.
      parts: constructors of its layers.
      strides: stride of the last separable convolution, and of the projection.
      dilation: dilation of the separable convolutions.
    """

    features: tuple[int, ...]
    parts: Parts
    strides: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features[2]]`.

        Returns:
          The block's output, and the input of its last separable convolution.
        """
        y = x
        for i, features in enumerate(self.features, start=1):
            y = before = nn.relu(y)
            strides = self.strides if i == 3 else 1
            sepconv = self.parts.sepconv(features, strides, self.dilation, name=f'sepconv{i}')
            y = sepconv(y, train)
        shortcut = self.parts.conv(self.features[2], 1, self.strides, name='shortcut')
        return y + shortcut(x, train), before


class EntryFlow(nn.Module):
    """Two convolutions (the stem) and the blocks.

    Attributes:
      features: output channels of the two convolutions and of each block.
      parts: constructors of its layers.
      nominal: stride of each block, before `layers.atrous` trades strides for dilation.
      strides: stride and dilation of each block.
    """

    features: tuple[int, ...]
    parts: Parts
    nominal: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, layers.EndPoints]:
        """Maps `[N, H, W, 3]` to `[N, H/16, W/16, features[-1]]`.

        Returns:
          The features, and the last features of each finer resolution.
        """
        conv1, conv2, *blocks = self.features
        x = nn.relu(self.parts.conv(conv1, 3, 2, 1, name='conv1')(x, train))
        x = nn.relu(self.parts.conv(conv2, 3, 1, 1, name='conv2')(x, train))
        ends = {}
        for i, features in enumerate(blocks, start=1):
            block = Block((features,) * 3, self.parts, *self.strides[i - 1], name=f'block{i}')
            x, before = block(x, train)
            if self.nominal[i - 1] > 1:
                ends[f'entry_flow/block{i}/sepconv2'] = before
        return x, ends


class ExitFlow(nn.Module):
    """A block, and three wide separable convolutions with ReLUs and without a shortcut.

    Attributes:
      features: output channels of the six separable convolutions.
      parts: constructors of its layers.
      strides: stride of the block.
      dilations: dilation of the block, and of the convolutions after it.
    """

    features: tuple[int, ...]
    parts: Parts
    strides: int
    dilations: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, layers.EndPoints]:
        """Maps `[N, H, W, C]` to `[N, H/2, W/2, features[-1]]`.

        Returns:
          The features, and the last features of the next finer resolution.
        """
        block = Block(self.features[:3], self.parts, self.strides, self.dilations[0], name='block1')
        x, before = block(x, train)
        for i, features in enumerate(self.features[3:], start=4):
            sepconv = self.parts.sepconv(
                features, dilation=self.dilations[1], intermediate='bn_relu', name=f'sepconv{i}'
            )
            x = nn.relu(sepconv(x, train))
        return x, {'exit_flow/block1/sepconv2': before}


class AlignedXception(Network):
    """Xception-65 with the defaults: 39,916,312 trainable parameters for 1000 classes.

    Attributes:
      width: multiplies every number of channels (rounded to a multiple of 8).
      entry_blocks: number of blocks of 128, of 256 and of 728 channels in the entry flow; the last
        of each kind has a stride of 2.
      middle_repeats: number of blocks in the middle flow.
      output_stride: stride of the last features: 32, or 16 or 8, for segmentation (see
        `layers.atrous`; the weights are the same).
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate before the classifier.
      bn_momentum, bn_epsilon, bn_group_size: options of batch norm, see `Network.norm`.
    """

    CHOICES: ClassVar = {'output_stride': layers.OUTPUT_STRIDES}

    width: float = 1.0
    entry_blocks: tuple[int, int, int] = (1, 1, 1)
    middle_repeats: int = 16
    output_stride: int = 32
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.0
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_group_size: int = 0

    def check_options(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has an impossible value.
        """
        super().check_options()
        if len(self.entry_blocks) != 3 or min(self.entry_blocks) < 1:
            raise ValueError(
                f'entry_blocks is {self.entry_blocks}; give three whole numbers above 0'
            )

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        parts = Parts.of(self.norm(), self.dtype, intermediate='bn')
        entry_features, nominal = [32, 64], []
        for features, count in zip((128, 256, 728), self.entry_blocks, strict=True):
            entry_features += [features] * count
            nominal += [1] * (count - 1) + [2]
        # Stride and dilation of the stem, the entry flow's blocks, the middle flow, the exit
        # flow's block, and what follows it.
        _, *entry, middle, block, end = layers.atrous((2, *nominal, 1, 2, 1), self.output_stride)

        features = layers.widen(entry_features, self.width)
        entry_flow = EntryFlow(features, parts, tuple(nominal), tuple(entry), name='entry_flow')
        x, ends = entry_flow(x, train)
        sepconv = functools.partial(parts.sepconv, dilation=middle[1])
        x = MiddleFlow(self.middle_repeats, sepconv, name='middle_flow')(x, train)
        features = layers.widen((728, 1024, 1024, 1536, 1536, 2048), self.width)
        exit_flow = ExitFlow(features, parts, block[0], (block[1], end[1]), name='exit_flow')
        x, exit_ends = exit_flow(x, train)
        ends |= exit_ends
        ends['exit_flow'] = x
        return ends


class Xception41(AlignedXception):
    """Xception-41: half the middle flow; 26,969,560 trainable parameters for 1000 classes."""

    middle_repeats: int = 8


class Xception71(AlignedXception):
    """Xception-71: a longer entry flow; 42,338,736 trainable parameters for 1000 classes."""

    entry_blocks: tuple[int, int, int] = (1, 2, 2)
