"""Xception (Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017).

The graph is that of the author's own code, `keras.applications.Xception`, and Figure 5 of the
paper where the two agree. `variant='article'` gives the graph of the article "Xception from Scratch
using Tensorflow" (Towards Data Science), which connects the same parameters differently;
`variant='timm'` that of timm's `legacy_xception`, which pads its max pools as PyTorch does.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax

from xception_flax.models import layers
from xception_flax.models.base import Network
from xception_flax.models.layers import Module, Parts

VARIANTS = ('keras', 'article', 'timm')
STEMS = ('imagenet', 'small')


class DownsamplingBlock(nn.Module):
    """Two separable convolutions and a max pool of stride 2, beside a 1x1 projection of stride 2.

    Attributes:
      features: output channels of the two separable convolutions.
      parts: constructors of its layers.
      strides: stride of the max pool and the projection.
      dilation: dilation of the separable convolutions and the max pool.
      residual: whether there is a shortcut at all.
    """

    features: tuple[int, int]
    parts: Parts
    strides: int = 2
    dilation: int = 1
    residual: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, carry: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features[1]]`.

        Args:
          x: the block's input.
          carry: input of the shortcut: the block's input, or the last projection (the article).
          train: whether to normalise by batch statistics.

        Returns:
          The block's output and the projection that was added to it (the output itself when the
          block has no shortcut).
        """
        conv, sepconv, pool = self.parts
        # In Figure 5 no ReLU begins the first block; its input is what a ReLU gave, so one more
        # changes nothing.
        sepconv = functools.partial(sepconv, dilation=self.dilation, leading_relu=True)
        first = sepconv(self.features[0], name='sepconv1')
        pool = functools.partial(pool, strides=self.strides, dilation=self.dilation)
        second = sepconv(self.features[1], pool=pool, name='sepconv2')
        y = layers.applied(second(first(x, train), train))
        if not self.residual:
            return y, y
        shortcut = conv(self.features[1], 1, self.strides, name='shortcut')(carry, train)
        return y + shortcut, shortcut


class MiddleBlock(nn.Module):
    """Three separable convolutions with an identity shortcut (paper, Figure 5, middle flow).

    Attributes:
      sepconv: makes a separable convolution with batch norm.
      residual: whether there is a shortcut at all.
      trailing_relu: whether a ReLU follows the last separable convolution (the article).
    """

    sepconv: Module
    residual: bool = True
    trailing_relu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H, W, C]`."""
        y = x
        for i in range(1, 4):
            y = self.sepconv(x.shape[-1], leading_relu=True, name=f'sepconv{i}')(y, train)
        y = layers.applied(y)
        if self.trailing_relu:
            y = nn.relu(y)
        return x + y if self.residual else y


class EntryFlow(nn.Module):
    """Two convolutions (the stem) and three downsampling blocks.

    Attributes:
      features: output channels of the two convolutions and of the three blocks.
      parts: constructors of its layers.
      residual: whether blocks have shortcuts.
      strides: stride and dilation of each block.
      stem_stride: stride of the first convolution.
      stem_padding: padding of the two convolutions.
      chain_shortcuts: whether a shortcut starts at the previous *projection* (the article) and not
        at the previous sum (Keras).
    """

    features: tuple[int, ...]
    parts: Parts
    residual: bool
    strides: tuple[tuple[int, int], ...]
    stem_stride: int
    stem_padding: str
    chain_shortcuts: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, layers.EndPoints]:
        """Maps `[N, H, W, 3]` to `[N, H/16, W/16, features[-1]]` (H/8 with the small stem).

        Returns:
          The features, and the last features of each finer resolution.
        """
        conv1, conv2, *blocks = self.features
        x = self.parts.conv(conv1, 3, self.stem_stride, self.stem_padding, name='conv1')(x, train)
        x = self.parts.conv(conv2, 3, 1, self.stem_padding, name='conv2')(nn.relu(x), train)
        carry = x = nn.relu(x)
        ends = {'entry_flow/conv2': x}
        for i, (features, strides) in enumerate(zip(blocks, self.strides, strict=True), start=1):
            block = DownsamplingBlock(
                (features, features),
                self.parts,
                *strides,
                residual=self.residual,
                name=f'block{i}',
            )
            x, projection = block(x, carry, train)
            carry = projection if self.chain_shortcuts else x
            if i < len(blocks):
                ends[f'entry_flow/block{i}'] = nn.relu(x)
        return x, ends


class MiddleFlow(nn.Module):
    """A sequence of equal residual blocks (eight in the paper).

    Attributes:
      repeats: number of blocks.
      sepconv: makes a separable convolution with batch norm.
      residual: whether blocks have shortcuts.
      trailing_relu: whether a block has a ReLU before its sum (the article).
    """

    repeats: int
    sepconv: Module
    residual: bool = True
    trailing_relu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H, W, C]`."""
        for i in range(1, self.repeats + 1):
            block = MiddleBlock(self.sepconv, self.residual, self.trailing_relu, name=f'block{i}')
            x = block(x, train)
        return x


class ExitFlow(nn.Module):
    """A downsampling block and two wide separable convolutions.

    Attributes:
      features: output channels of the four separable convolutions.
      parts: constructors of its layers.
      residual: whether the block has a shortcut.
      strides: stride of the block.
      dilations: dilation of the block, and of the convolutions after it.
      last_relu: whether a ReLU follows the last separable convolution.
    """

    features: tuple[int, int, int, int]
    parts: Parts
    residual: bool
    strides: int
    dilations: tuple[int, int]
    last_relu: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H/2, W/2, features[-1]]`."""
        block = DownsamplingBlock(
            self.features[:2],
            self.parts,
            self.strides,
            self.dilations[0],
            residual=self.residual,
            name='block1',
        )
        x, _ = block(x, x, train)
        sepconv = functools.partial(self.parts.sepconv, dilation=self.dilations[1])
        x = sepconv(self.features[2], name='sepconv3')(x, train)
        x = sepconv(self.features[3], leading_relu=True, name='sepconv4')(x, train)
        x = layers.applied(x)
        return nn.relu(x) if self.last_relu else x


class Xception(Network):
    """Xception: entry flow, middle flow, exit flow, classifier.

    With the defaults and 1000 classes: 22,855,952 trainable parameters and 54,528 statistics;
    feature sizes 149, 147, 74, 37, 19, 10, 10 for a 299x299 image.

    Attributes:
      variant: 'keras' (the author's graph), 'article' (SAME stem, shortcuts chained from
        projection to projection in the entry flow, a ReLU before each sum of the middle flow, none
        after the last convolution) or 'timm' (max pools with one pixel of padding on either side;
        timm's weights need `bn_epsilon=1e-5`, too).
      stem: 'imagenet' (first convolution of stride 2), or 'small' (stride 1 and SAME padding, for
        images of 16 to 64 pixels).
      width: multiplies every number of channels (rounded to a multiple of 8).
      middle_repeats: number of blocks in the middle flow.
      residual: False removes all shortcuts (paper, section 4.6 and Figure 9).
      intermediate: what follows a depthwise convolution: 'none', 'relu', 'elu' (paper, section 4.7
        and Figure 10), 'bn', 'bn_relu' or 'bn_elu' (as in DeepLabv3+).
      output_stride: stride of the last features: 32, or 16 or 8, for segmentation (see
        `layers.atrous`; the weights are the same).
      fc_layers: widths of fully connected layers before the classifier ((4096, 4096) in the
        paper's JFT experiments).
      dropout: rate before the classifier (0.5 in the paper's ImageNet runs; Keras has none).
      bn_momentum, bn_epsilon, bn_group_size: options of batch norm, see `Network.norm`.
      bn_scale: whether batch norm has a learned scale. The released Keras weights hold only ones.
    """

    CHOICES: ClassVar = {
        'variant': VARIANTS,
        'stem': STEMS,
        'intermediate': layers.INTERMEDIATE,
        'output_stride': layers.OUTPUT_STRIDES,
    }

    variant: str = 'keras'
    stem: str = 'imagenet'
    width: float = 1.0
    middle_repeats: int = 8
    residual: bool = True
    intermediate: str = 'none'
    output_stride: int = 32
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.5
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_scale: bool = True
    bn_group_size: int = 0

    @property
    def min_image_size(self) -> int:
        """Smallest side of an image that the network takes, in pixels (Keras: 71)."""
        return 71 if self.stem == 'imagenet' else 8

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        article = self.variant == 'article'
        small = self.stem == 'small'
        norm, symmetric = self.norm(self.bn_scale), self.variant == 'timm'
        parts = Parts.of(norm, self.dtype, self.intermediate, symmetric)
        # Stride and dilation of the stem, the three blocks of the entry flow, the middle flow, the
        # exit flow's block, and what follows it.
        stem, *entry, middle, block, end = layers.atrous(
            (1 if small else 2, 2, 2, 2, 1, 2, 1), self.output_stride
        )

        x, ends = EntryFlow(
            layers.widen((32, 64, 128, 256, 728), self.width),
            parts,
            self.residual,
            strides=tuple(entry),
            stem_stride=stem[0],
            stem_padding='SAME' if small or article else 'VALID',
            chain_shortcuts=article,
            name='entry_flow',
        )(x, train)
        x = MiddleFlow(
            self.middle_repeats,
            functools.partial(parts.sepconv, dilation=middle[1]),
            self.residual,
            trailing_relu=article,
            name='middle_flow',
        )(x, train)
        ends['middle_flow'] = nn.relu(x)
        x = ExitFlow(
            layers.widen((728, 1024, 1536, 2048), self.width),
            parts,
            self.residual,
            strides=block[0],
            dilations=(block[1], end[1]),
            last_relu=not article,
            name='exit_flow',
        )(x, train)
        ends['exit_flow'] = x
        return ends
