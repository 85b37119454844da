"""The aligned Xception, a backbone for segmentation and detection.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation"
(DeepLabv3+, 2018), Figure 4, after Qi et al.'s detector of 2017: deeper than Xception, separable
convolutions with a stride in place of its max pools, batch norm between depthwise and pointwise
convolutions. The graph is that of DeepLab's code and of timm's `xception41`, `65` and `71`, the
numbers of convolutions. Padding is symmetric, so that features lie over the same pixels whatever
the output stride.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax.models import layers
from xception_flax.models.layers import Module
from xception_flax.models.xception import MiddleFlow


class Block(nn.Module):
    """Three separable convolutions, each after a ReLU, beside a 1x1 projection.

    Attributes:
      features: output channels of the three separable convolutions.
      conv: makes a convolution with batch norm.
      sepconv: makes a separable convolution with batch norm.
      strides: stride of the last separable convolution, and of the projection.
      dilation: dilation of the separable convolutions.
    """

    features: tuple[int, ...]
    conv: Module
    sepconv: Module
    strides: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features[2]]`.

        Returns:
          The block's output, and what its last separable convolution starts from.
        """
        y = x
        for i, features in enumerate(self.features, start=1):
            y = before = nn.relu(y)
            sepconv = self.sepconv(
                features, self.strides if i == 3 else 1, self.dilation, name=f'sepconv{i}'
            )
            y = sepconv(y, train)
        return y + self.conv(self.features[2], 1, self.strides, name='shortcut')(x, train), before


class EntryFlow(nn.Module):
    """Two convolutions (the stem) and the blocks.

    Attributes:
      features: output channels of the two convolutions and of each block.
      conv: makes a convolution with batch norm.
      sepconv: makes a separable convolution with batch norm.
      nominal: stride of each block, before any is traded for dilation.
      strides: stride and dilation of each block.
    """

    features: tuple[int, ...]
    conv: Module
    sepconv: Module
    nominal: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, layers.EndPoints]:
        """Maps `[N, H, W, 3]` to `[N, H/16, W/16, features[-1]]`.

        Returns:
          The features, and the last ones of the resolutions before.
        """
        conv1, conv2, *blocks = self.features
        x = nn.relu(self.conv(conv1, 3, 2, 1, name='conv1')(x, train))
        x = nn.relu(self.conv(conv2, 3, 1, 1, name='conv2')(x, train))
        ends = {}
        for i, features in enumerate(blocks, start=1):
            block = Block(
                (features,) * 3, self.conv, self.sepconv, *self.strides[i - 1], name=f'block{i}'
            )
            x, before = block(x, train)
            if self.nominal[i - 1] > 1:
                ends[f'entry_flow/block{i}/sepconv2'] = before
        return x, ends


class ExitFlow(nn.Module):
    """A block, and three wide separable convolutions with ReLUs and without a shortcut.

    Attributes:
      features: output channels of the six separable convolutions.
      conv: makes a convolution with batch norm.
      sepconv: makes a separable convolution with batch norm.
      strides: stride of the block.
      dilations: of the block, and of the convolutions after it.
    """

    features: tuple[int, ...]
    conv: Module
    sepconv: Module
    strides: int
    dilations: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, layers.EndPoints]:
        """Maps `[N, H, W, C]` to `[N, H/2, W/2, features[-1]]`.

        Returns:
          The features, and the last ones of the resolution before.
        """
        block = Block(
            self.features[:3],
            self.conv,
            self.sepconv,
            self.strides,
            self.dilations[0],
            name='block1',
        )
        x, before = block(x, train)
        for i, features in enumerate(self.features[3:], start=4):
            sepconv = self.sepconv(
                features, dilation=self.dilations[1], intermediate='bn_relu', name=f'sepconv{i}'
            )
            x = nn.relu(sepconv(x, train))
        return x, {'exit_flow/block1/sepconv2': before}


class AlignedXception(nn.Module):
    """Xception-65 with the defaults: 39,916,312 trainable parameters for 1000 classes.

    Attributes:
      num_classes: number of logits.
      width: multiplies every number of channels (rounded to a multiple of 8).
      entry_blocks: number of blocks of 128, of 256 and of 728 channels in the entry flow; the last
        of each kind has a stride of 2.
      middle_repeats: number of blocks in the middle flow.
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
    width: float = 1.0
    entry_blocks: tuple[int, int, int] = (1, 1, 1)
    middle_repeats: int = 16
    output_stride: int = 32
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.0
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has a value that makes no network.
        """
        layers.check_options(self, {'output_stride': layers.OUTPUT_STRIDES})
        if len(self.entry_blocks) != 3 or min(self.entry_blocks) < 1:
            raise ValueError(
                f'entry_blocks is {self.entry_blocks}; give three whole numbers above 0'
            )
        super().__post_init__()

    @property
    def min_image_size(self) -> int:
        """Smallest side of a picture that the network takes, in pixels: the coarsest stride."""
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
        conv = functools.partial(layers.ConvBN, norm=norm, dtype=self.dtype)
        sepconv = functools.partial(
            layers.SeparableConv, intermediate='bn', norm=norm, dtype=self.dtype
        )
        entry_features, nominal = [32, 64], []
        for features, count in zip((128, 256, 728), self.entry_blocks, strict=True):
            entry_features += [features] * count
            nominal += [1] * (count - 1) + [2]
        # Stride and dilation of the stem, the entry flow's blocks, the middle flow, the exit
        # flow's block, and what follows it.
        _, *entry, middle, block, end = layers.atrous((2, *nominal, 1, 2, 1), self.output_stride)

        x = x.astype(self.dtype)
        x, ends = EntryFlow(
            layers.widen(entry_features, self.width),
            conv,
            sepconv,
            tuple(nominal),
            tuple(entry),
            name='entry_flow',
        )(x, train)
        x = MiddleFlow(
            self.middle_repeats,
            functools.partial(sepconv, dilation=middle[1]),
            name='middle_flow',
        )(x, train)
        x, exit_ends = ExitFlow(
            layers.widen((728, 1024, 1024, 1536, 1536, 2048), self.width),
            conv,
            sepconv,
            block[0],
            (block[1], end[1]),
            name='exit_flow',
        )(x, train)
        ends |= exit_ends
        ends['exit_flow'] = x
        if features_only:
            return ends
        return layers.classify(x, self.num_classes, self.fc_layers, self.dropout, self.dtype, train)


class Xception41(AlignedXception):
    """Xception-41: half the middle flow; 26,969,560 trainable parameters for 1000 classes."""

    middle_repeats: int = 8


class Xception71(AlignedXception):
    """Xception-71: a longer entry flow; 42,338,736 trainable parameters for 1000 classes."""

    entry_blocks: tuple[int, int, int] = (1, 2, 2)
