"""LeNet-5 and AlexNet, which the history of convolutional networks starts from."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.models import layers

# LeNet-5: the maps that each map of the second convolution sees (Table I).
CONNECTED = (
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6) for i in range(3)),
    tuple(range(6)),
)


class Subsampling(nn.Module):
    """LeNet-5's pooling: the average of 2x2, times a learned scale, plus a learned bias.

    Attributes:
      dtype: compute type.
    """

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H/2, W/2, C]`."""
        features, dtype = x.shape[-1:], layers.wide(self.dtype)
        scale = self.param('scale', nn.initializers.ones, features, dtype).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros, features, dtype).astype(self.dtype)
        return nn.avg_pool(x, (2, 2), (2, 2)) * scale + bias


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998).

    As in the paper's section II.B: 60,000 parameters before the classifier, in two convolutions,
    of which the second sees chosen maps only, a third convolution that covers all of a 32x32
    picture, pooling with weights, and a scaled tanh. In place of the paper's distances to drawings
    of the ten digits there is a dense layer. The network sees grey: the mean of the three channels
    (which are equal where the picture was grey).

    Attributes:
      num_classes: number of logits.
      dtype: compute type; parameters and logits are float32, or float64 if it is.
    """

    num_classes: int = 1000
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has a value that makes no network.
        """
        layers.check_options(self, {})
        super().__post_init__()

    @property
    def min_image_size(self) -> int:
        """Smallest side of a picture that the network takes, in pixels."""
        return 32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features_only: bool = False
    ) -> jax.Array | layers.EndPoints:
        """Classifies pictures.

        Args:
          x: pictures, `[N, H, W, 3]`, in [-1, 1]. On ones larger than 32x32, the last
            convolution's features are averaged.
          train: has no effect.
          features_only: whether to leave the fully connected layers out.

        Returns:
          Logits, `[N, num_classes]`, float32 (float64 if `dtype` is); with `features_only` the
          last features of each resolution, by name (see `models.end_points`).

        Raises:
          ValueError: the pictures are smaller than `min_image_size`.
        """
        layers.check_size(self, x)
        x = jnp.mean(x, -1, keepdims=True).astype(self.dtype)
        x = _squash(self._conv(6, 'conv1')(x))
        ends = {'conv1': x}
        x = _squash(Subsampling(self.dtype, name='pool1')(x))
        maps = [
            self._conv(1, f'conv2_map{i}')(x[..., list(seen)])
            for i, seen in enumerate(CONNECTED, start=1)
        ]
        x = ends['conv2'] = _squash(jnp.concatenate(maps, -1))
        x = _squash(Subsampling(self.dtype, name='pool2')(x))
        x = ends['conv3'] = _squash(self._conv(120, 'conv3')(x))
        if features_only:
            return ends
        x = _squash(layers.dense(84, self.dtype, name='fc')(jnp.mean(x, (1, 2))))
        return layers.dense(self.num_classes, layers.wide(self.dtype), name='logits')(x)

    def _conv(self, features: int, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (5, 5),
            padding='VALID',
            kernel_init=layers.kernel_init,
            dtype=self.dtype,
            param_dtype=layers.wide(self.dtype),
            name=name,
        )


def _squash(x: jax.Array) -> jax.Array:
    return 1.7159 * jnp.tanh(2 / 3 * x)


# Channels, side of the kernel, stride, padding and groups of AlexNet's convolutions.
CONVOLUTIONS = (
    (96, 11, 4, 0, 1),
    (256, 5, 1, 2, 2),
    (384, 3, 1, 1, 1),
    (384, 3, 1, 1, 2),
    (256, 3, 1, 1, 2),
)


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky et al., "ImageNet Classification with Deep CNNs", 2012).

    The paper's own, of two halves that meet in the third convolution and the fully connected
    layers: 60,965,224 parameters for 227x227 pictures (the paper says 224, which does not fit its
    55x55 outputs) and 1000 classes. The first fully connected layer's size follows from that of
    the pictures.

    Attributes:
      num_classes: number of logits.
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate after each of them.
      dtype: compute type; parameters and logits are float32, or float64 if it is.
    """

    num_classes: int = 1000
    fc_layers: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an option has a value that makes no network.
        """
        layers.check_options(self, {})
        super().__post_init__()

    @property
    def min_image_size(self) -> int:
        """Smallest side of a picture that the network takes, in pixels."""
        return 67

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features_only: bool = False
    ) -> jax.Array | layers.EndPoints:
        """Classifies pictures.

        Args:
          x: pictures, `[N, H, W, 3]`, in [-1, 1].
          train: whether to drop out (drawing from the rng stream 'dropout').
          features_only: whether to leave the fully connected layers out.

        Returns:
          Logits, `[N, num_classes]`, float32 (float64 if `dtype` is); with `features_only` the
          last features of each resolution, by name (see `models.end_points`).

        Raises:
          ValueError: the pictures are smaller than `min_image_size`.
        """
        layers.check_size(self, x)
        ends: layers.EndPoints = {}
        x = x.astype(self.dtype)
        for i, (features, kernel, strides, padding, groups) in enumerate(CONVOLUTIONS, start=1):
            conv = nn.Conv(
                features,
                (kernel, kernel),
                strides,
                padding,
                feature_group_count=groups,
                kernel_init=layers.kernel_init,
                dtype=self.dtype,
                param_dtype=layers.wide(self.dtype),
                name=f'conv{i}',
            )
            x = nn.relu(conv(x))
            if i in (1, 2, 5):
                ends[f'conv{i}'] = x
                x = nn.max_pool(local_response_norm(x) if i < 5 else x, (3, 3), (2, 2))
        ends['conv5_pool'] = x
        if features_only:
            return ends
        return layers.classify_flat(
            x, self.num_classes, self.fc_layers, self.dropout, self.dtype, train
        )


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides by the size of the five channels around (AlexNet's section 3.3, its constants)."""
    around = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), 'SAME')
    return x / (2 + 1e-4 * around) ** 0.75
