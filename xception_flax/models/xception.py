"""Xception (Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017).

The graph is that of the author's own code, `keras.applications.Xception`, and Figure 5 of the
paper where the two agree; `variant='article'` gives the graph of the article "Xception from Scratch
using Tensorflow" (Towards Data Science), which has the same parameters, differently connected.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax.models import layers
from xception_flax.models.layers import Module

VARIANTS = ('keras', 'article')
STEMS = ('imagenet', 'small')


class DownsamplingBlock(nn.Module):
    """Two separable convolutions and a max pool of stride 2, beside a 1x1 projection of stride 2.

    Attributes:
      features: output channels of the two separable convolutions.
      conv: makes a convolution with batch norm.
      sepconv: makes a separable convolution with batch norm.
      leading_relu: whether a ReLU precedes the first separable convolution.
      residual: whether there is a shortcut at all.
    """

    features: tuple[int, int]
    conv: Module
    sepconv: Module
    leading_relu: bool = True
    residual: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, carry: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps `[N, H, W, C]` to `[N, H/2, W/2, features[1]]`.

        Args:
          x: the block's input.
          carry: what the shortcut starts from: the input, or the last projection (the article's).
          train: whether to normalise by batch statistics.

        Returns:
          The block's output and the projection that was added to it (the output itself when the
          block has no shortcut).
        """
        y = nn.relu(x) if self.leading_relu else x
        y = self.sepconv(self.features[0], name='sepconv1')(y, train)
        y = self.sepconv(self.features[1], name='sepconv2')(nn.relu(y), train)
        y = layers.max_pool(y)
        if not self.residual:
            return y, y
        shortcut = self.conv(self.features[1], 1, 2, name='shortcut')(carry, train)
        return y + shortcut, shortcut


class MiddleBlock(nn.Module):
    """Three separable convolutions around an identity shortcut (paper, Figure 5, middle flow).

    Attributes:
      sepconv: makes a separable convolution with batch norm.
      residual: whether there is a shortcut at all.
      trailing_relu: whether a ReLU follows the last separable convolution (the article's).
    """

    sepconv: Module
    residual: bool = True
    trailing_relu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H, W, C]`."""
        y = x
        for i in range(1, 4):
            y = self.sepconv(x.shape[-1], name=f'sepconv{i}')(nn.relu(y), train)
        if self.trailing_relu:
            y = nn.relu(y)
        return x + y if self.residual else y


class EntryFlow(nn.Module):
    """Two convolutions (the stem) and three downsampling blocks.

    Attributes:
      features: output channels of the two convolutions and of the three blocks.
      conv: makes a convolution with batch norm.
      sepconv: makes a separable convolution with batch norm.
      residual: whether blocks have shortcuts.
      stem_stride: stride of the first convolution.
      stem_padding: padding of the two convolutions.
      chain_shortcuts: whether a shortcut starts at the previous *projection* (the article's) and
        not at the previous sum (Keras's).
    """

    features: tuple[int, ...]
    conv: Module
    sepconv: Module
    residual: bool
    stem_stride: int
    stem_padding: str
    chain_shortcuts: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, 3]` to `[N, H/16, W/16, features[-1]]` (H/8 with the small stem)."""
        conv1, conv2, *blocks = self.features
        x = self.conv(conv1, 3, self.stem_stride, self.stem_padding, name='conv1')(x, train)
        x = self.conv(conv2, 3, 1, self.stem_padding, name='conv2')(nn.relu(x), train)
        carry = x = nn.relu(x)
        for i, features in enumerate(blocks, start=1):
            block = DownsamplingBlock(
                (features, features),
                self.conv,
                self.sepconv,
                leading_relu=i > 1,
                residual=self.residual,
                name=f'block{i}',
            )
            x, projection = block(x, carry, train)
            carry = projection if self.chain_shortcuts else x
        return x


class MiddleFlow(nn.Module):
    """The same residual block several times over (eight in the paper).

    Attributes:
      repeats: number of blocks.
      sepconv: makes a separable convolution with batch norm.
      residual: whether blocks have shortcuts.
      trailing_relu: whether a block ends in a ReLU before its sum (the article's).
    """

    repeats: int
    sepconv: Module
    residual: bool
    trailing_relu: bool

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
      conv: makes a convolution with batch norm.
      sepconv: makes a separable convolution with batch norm.
      residual: whether the block has a shortcut.
      last_relu: whether a ReLU follows the last separable convolution.
    """

    features: tuple[int, int, int, int]
    conv: Module
    sepconv: Module
    residual: bool
    last_relu: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H/2, W/2, features[-1]]`."""
        block = DownsamplingBlock(
            self.features[:2], self.conv, self.sepconv, residual=self.residual, name='block1'
        )
        x, _ = block(x, x, train)
        x = nn.relu(self.sepconv(self.features[2], name='sepconv3')(x, train))
        x = self.sepconv(self.features[3], name='sepconv4')(x, train)
        return nn.relu(x) if self.last_relu else x


class Xception(nn.Module):
    """Xception: entry flow, middle flow, exit flow, classifier.

    With the defaults and 1000 classes: 22,855,952 trainable parameters and 54,528 statistics;
    feature sizes 149, 147, 74, 37, 19, 10, 10 for a 299x299 picture.

    Attributes:
      num_classes: number of logits.
      variant: 'keras' (the author's graph) or 'article' (SAME stem, shortcuts chained from
        projection to projection in the entry flow, a ReLU before each sum of the middle flow, none
        after the last convolution).
      stem: 'imagenet' (first convolution of stride 2), or 'small' (stride 1 and SAME padding, for
        pictures of 16 to 64 pixels).
      width: multiplies every number of channels (rounded to a multiple of 8).
      middle_repeats: number of blocks in the middle flow.
      residual: False removes all shortcuts (paper, section 4.6 and Figure 9).
      intermediate: between depthwise and pointwise convolution: 'none', 'relu', 'elu' (paper,
        section 4.7 and Figure 10), 'bn_relu' or 'bn_elu' (as in DeepLabv3+).
      fc_layers: widths of fully connected layers before the classifier ((4096, 4096) in the
        paper's JFT experiments).
      dropout: rate before the classifier (0.5 in the paper's ImageNet runs; Keras has none).
      bn_momentum: share of the running statistics that a step keeps.
      bn_epsilon: added to the variance.
      bn_scale: whether batch norm has a learned scale. The released Keras weights hold only ones.
      bn_group_size: pictures that share batch statistics; 0 for the whole global batch.
      dtype: compute type; parameters, statistics and logits are float32, or float64 if it is.
    """

    num_classes: int = 1000
    variant: str = 'keras'
    stem: str = 'imagenet'
    width: float = 1.0
    middle_repeats: int = 8
    residual: bool = True
    intermediate: str = 'none'
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.5
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_scale: bool = True
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has a value that makes no network.
        """
        layers.check_options(
            self, {'variant': VARIANTS, 'stem': STEMS, 'intermediate': layers.INTERMEDIATE}
        )
        super().__post_init__()

    @property
    def min_image_size(self) -> int:
        """Smallest side of a picture that the network takes, in pixels (Keras: 71)."""
        return 71 if self.stem == 'imagenet' else 8

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
        article = self.variant == 'article'
        small = self.stem == 'small'
        norm = functools.partial(
            layers.BatchNorm,
            self.bn_momentum,
            self.bn_epsilon,
            self.bn_scale,
            self.bn_group_size,
            self.dtype,
        )
        conv = functools.partial(layers.ConvBN, norm=norm, dtype=self.dtype)
        sepconv = functools.partial(
            layers.SeparableConv, intermediate=self.intermediate, norm=norm, dtype=self.dtype
        )

        x = x.astype(self.dtype)
        x = EntryFlow(
            self._channels(32, 64, 128, 256, 728),
            conv,
            sepconv,
            self.residual,
            stem_stride=1 if small else 2,
            stem_padding='SAME' if small or article else 'VALID',
            chain_shortcuts=article,
            name='entry_flow',
        )(x, train)
        x = MiddleFlow(
            self.middle_repeats, sepconv, self.residual, trailing_relu=article, name='middle_flow'
        )(x, train)
        x = ExitFlow(
            self._channels(728, 1024, 1536, 2048),
            conv,
            sepconv,
            self.residual,
            last_relu=not article,
            name='exit_flow',
        )(x, train)

        return layers.classify(
            x, self.num_classes, self.fc_layers, self.dropout, self.dtype, train
        )

    def _channels(self, *channels: int) -> Any:
        if self.width == 1:
            return channels
        return tuple(max(8, round(c * self.width / 8) * 8) for c in channels)
