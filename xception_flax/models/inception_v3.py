"""Inception V3 (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016).

The network that the Xception paper compares with. `variant='slim'` is the graph of
`keras.applications.InceptionV3` and, under other names, of TF-slim. `variant='keras1'` is the
author's first Keras version (fchollet/deep-learning-models, inception_v3.py), with the number of
trainable parameters in the paper's Table 3. `variant='timm'` is that of timm and torchvision.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax import ops
from xception_flax.models import layers
from xception_flax.models.base import Network
from xception_flax.models.layers import Module

VARIANTS = ('slim', 'keras1', 'timm')
STEMS = ('imagenet', 'small')


class ConvBNReLU(nn.Module):
    """Convolution, batch norm and ReLU.

    Attributes:
      features: output channels, before `width`.
      kernel: height and width of the kernel.
      strides: stride in both directions.
      padding: 'SAME' or 'VALID'.
      relu_first: whether ReLU precedes batch norm and the convolution has a bias (`keras1`).
      width: multiplies the output channels.
      norm: constructor of batch norm.
      pool: max pooling after batch norm, or None.
      dtype: compute type.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str = 'SAME'
    relu_first: bool = False
    width: float = 1.0
    norm: Module = layers.BatchNorm
    pool: layers.Pool | None = None
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features]`, before `pool`."""
        (features,) = layers.widen((self.features,), self.width)
        x = layers.Conv(
            features,
            self.kernel,
            self.strides,
            self.padding,
            use_bias=self.relu_first,
            dtype=self.dtype,
            param_dtype=layers.wide(self.dtype),
            name='conv',
        )(x)
        bn = layers.pooled(self.norm, self.pool)(name='bn')
        return bn(nn.relu(x), train) if self.relu_first else nn.relu(bn(x, train))


class Mixed(nn.Module):
    """Parallel branches, whose outputs are concatenated along the channels.

    Attributes:
      branches: name and convolutions of each branch; a convolution is the arguments of
        `ConvBNReLU`, or a pair of these for a fork, whose outputs are concatenated.
      pool: pooling of the last branch: 'average' (stride 1), or 'max2' or 'average2' (stride 2).
      projection: channels of the 1x1 convolution after the pooling; 0 for none.
      conv: makes a `ConvBNReLU`.
      padding: padding of a pool of stride 2.
      average_padding: whether the zeros of the padding count in 'average'.
    """

    branches: tuple[tuple[str, tuple], ...]
    pool: str
    projection: int
    conv: Module
    padding: str = 'VALID'
    average_padding: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H, W, C']`, or half the height and width."""
        outputs = []
        for name, convolutions in self.branches:
            y = x
            for i, arguments in enumerate(convolutions, start=1):
                if isinstance(arguments[0], tuple):
                    ends = [
                        self.conv(*end, name=f'{name}_{i}{letter}')(y, train)
                        for letter, end in zip('ab', arguments, strict=True)
                    ]
                    y = jnp.concatenate(ends, -1)
                else:
                    y = self.conv(*arguments, name=f'{name}_{i}')(y, train)
            outputs.append(y)
        y = self._pool(x)
        if self.projection:
            y = self.conv(self.projection, name='branch_pool')(y, train)
        return jnp.concatenate([*outputs, y], -1)

    def _pool(self, x: jax.Array) -> jax.Array:
        if self.pool == 'max2':
            return ops.max_pool(x, 3, 2, self.padding)
        if self.pool == 'average':
            return nn.avg_pool(
                x,
                window_shape=(3, 3),
                padding='SAME',
                count_include_pad=self.average_padding,
            )
        return nn.avg_pool(x, window_shape=(3, 3), strides=(2, 2), padding=self.padding)


class Auxiliary(nn.Module):
    """The auxiliary classifier on the last 17x17 features (paper, section 4; TF-slim's sizes).

    Attributes:
      num_classes: number of logits.
      conv: makes a `ConvBNReLU`.
      dtype: type of the logits.
      bias: their initial bias.
    """

    num_classes: int
    conv: Module
    dtype: layers.Dtype
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to logits, `[N, num_classes]`."""
        x = nn.avg_pool(x, window_shape=(5, 5), strides=(3, 3))
        x = self.conv(128, name='conv1')(x, train)
        kernel = (min(5, x.shape[1]), min(5, x.shape[2]))
        x = self.conv(768, kernel, 1, 'VALID', name='conv2')(x, train)
        x = jnp.mean(x, (1, 2), dtype=self.dtype)
        return layers.classifier(self.num_classes, self.dtype, self.bias)(x)


class InceptionV3(Network):
    """Inception V3.

    With the defaults and 1000 classes: 23,817,352 trainable parameters and 34,432 statistics;
    feature sizes 149, 147, 147, 73, 71, 35, 17, 8 for a 299x299 image.

    Attributes:
      variant: 'slim'; 'keras1' (23,626,728 trainable parameters): convolutions with bias, ReLU
        before batch norm (with a scale), 32 channels after the pooling of all three 35x35 blocks,
        160 channels first in the long branch of the last 17x17 block, and average instead of max
        pooling before the 8x8 blocks; or 'timm' (23,834,568): batch norm with a scale, and averages
        that count the padding.
      stem: 'imagenet', or 'small' (first convolution of stride 1, and SAME padding throughout, for
        images of 16 to 64 pixels; feature sizes are those of Xception's small stem).
      width: multiplies every number of channels (rounded to a multiple of 8).
      auxiliary: whether training has the auxiliary classifier; its logits are sown as
        'auxiliary'/'aux_logits'.
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate before the classifier (0.5 in the Xception paper's ImageNet runs).
      bn_momentum, bn_epsilon, bn_group_size: options of batch norm, see `Network.norm`.
      bn_scale: whether batch norm has a learned scale in 'slim'; the other variants have one.
    """

    CHOICES: ClassVar = {'variant': VARIANTS, 'stem': STEMS}

    variant: str = 'slim'
    stem: str = 'imagenet'
    width: float = 1.0
    auxiliary: bool = False
    fc_layers: tuple[int, ...] = ()
    dropout: float = 0.5
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_scale: bool = False
    bn_group_size: int = 0

    @property
    def min_image_size(self) -> int:
        """Smallest side of an image that the network takes, in pixels (Keras: 75)."""
        if self.stem == 'small':
            return 33 if self.auxiliary else 8
        return 139 if self.auxiliary else 75

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        small = self.stem == 'small'
        padding = 'SAME' if small else 'VALID'
        norm = self.norm(self.bn_scale or self.variant != 'slim')
        conv = functools.partial(
            ConvBNReLU,
            relu_first=self.variant == 'keras1',
            width=self.width,
            norm=norm,
            dtype=self.dtype,
        )

        ends: layers.EndPoints = {}
        max_pool = functools.partial(ops.max_pool, window=3, strides=2, padding=padding)
        for i, convolution in enumerate(before_blocks(1 if small else 2, padding), start=1):
            last = i in (3, 5)  # the last of its resolution
            early = max_pool if last and not features_only else None
            x = conv(*convolution, pool=early, name=f'conv{i}')(x, train)
            if last and features_only:
                ends[f'conv{i}'] = x
                x = max_pool(x)
        auxiliary_now = self.auxiliary and not features_only and (train or self.is_initializing())
        for i, (branches, pool, projection) in enumerate(blocks(self.variant, padding)):
            if i == 8 and auxiliary_now:
                dtype = layers.wide(self.dtype)
                auxiliary = Auxiliary(self.num_classes, conv, dtype, self.head_bias, name='aux')
                logits = auxiliary(x, train)
                if not self.is_initializing():
                    self.sow('auxiliary', 'aux_logits', logits)
            mixed = Mixed(
                branches,
                pool,
                projection,
                conv,
                padding,
                average_padding=self.variant == 'timm',
                name=f'mixed{i}',
            )
            x = mixed(x, train)
            if i in (2, 7, 10):
                ends[f'mixed{i}'] = x
        return ends


def before_blocks(strides: int, padding: str) -> list[tuple]:
    """The arguments of the five convolutions before the first block.

    Args:
      strides: stride of the first.
      padding: padding of the others than the third and fourth, which are SAME.
    """
    return [
        (32, (3, 3), strides, padding),
        (32, (3, 3), 1, padding),
        (64, (3, 3)),
        (80, (1, 1)),
        (192, (3, 3), 1, padding),
    ]


def blocks(variant: str, padding: str) -> list[tuple]:
    """The arguments of the eleven `Mixed` blocks: branches, pool and projection.

    Args:
      variant: variant of the network.
      padding: padding of convolutions of stride 2.
    """
    first = variant == 'keras1'
    found = [_mixed_35(32 if first or i == 0 else 64) for i in range(3)]
    found.append(
        (
            (
                ('branch3x3', ((384, (3, 3), 2, padding),)),
                ('branch3x3dbl', ((64,), (96, (3, 3)), (96, (3, 3), 2, padding))),
            ),
            'max2',
            0,
        )
    )
    found += [_mixed_17(128), _mixed_17(160), _mixed_17(160), _mixed_17(192, 160 if first else 192)]
    found.append(
        (
            (
                ('branch3x3', ((192,), (320, (3, 3), 2, padding))),
                (
                    'branch7x7x3',
                    ((192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, padding)),
                ),
            ),
            'average2' if first else 'max2',
            0,
        )
    )
    fork = ((384, (1, 3)), (384, (3, 1)))
    wide = (
        ('branch1x1', ((320,),)),
        ('branch3x3', ((384,), fork)),
        ('branch3x3dbl', ((448,), (384, (3, 3)), fork)),
    )
    return [*found, (wide, 'average', 192), (wide, 'average', 192)]


def _mixed_35(projection: int) -> tuple:
    branches = (
        ('branch1x1', ((64,),)),
        ('branch5x5', ((48,), (64, (5, 5)))),
        ('branch3x3dbl', ((64,), (96, (3, 3)), (96, (3, 3)))),
    )
    return branches, 'average', projection


def _mixed_17(c: int, start: int | None = None) -> tuple:
    branches = (
        ('branch1x1', ((192,),)),
        ('branch7x7', ((c,), (c, (1, 7)), (192, (7, 1)))),
        ('branch7x7dbl', ((start or c,), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7)))),
    )
    return branches, 'average', 192
