"""Historical networks: LeNet-5 and AlexNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from xception_flax.models import layers
from xception_flax.models.base import Network

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
        return nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2)) * scale + bias


class LeNet5(Network):
    """LeNet-5 (LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998).

    As in section II.B of the paper: three convolutions, of which the second connects selected maps
    only and the third covers a whole 32x32 image; pooling with weights; a scaled tanh; 60,000
    parameters before the classifier. A dense layer replaces the paper's distances to drawings of
    the ten digits. The input is grey: the mean of the three channels.
    """

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        x = jnp.mean(x, -1, keepdims=True)
        x = _squash(self._conv(6, 'conv1')(x))
        ends = {'conv1': x}
        x = _squash(Subsampling(self.dtype, name='pool1')(x))
        maps = [
            self._conv(1, f'conv2_map{i}')(x[..., list(seen)])
            for i, seen in enumerate(CONNECTED, start=1)
        ]
        x = ends['conv2'] = _squash(jnp.concatenate(maps, -1))
        x = _squash(Subsampling(self.dtype, name='pool2')(x))
        ends['conv3'] = _squash(self._conv(120, 'conv3')(x))
        return ends

    def head(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps the last features, `[N, H, W, C]`, to logits, `[N, num_classes]`.

        Features of images larger than 32x32 are averaged.
        """
        x = _squash(layers.dense(84, self.dtype, name='fc')(jnp.mean(x, (1, 2))))
        return layers.classifier(self.num_classes, self.dtype, self.head_bias)(x)

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


class AlexNet(Network):
    """AlexNet (Krizhevsky et al., "ImageNet Classification with Deep CNNs", 2012).

    The paper's version, with two halves that join in the third convolution and the fully connected
    layers: 60,965,224 parameters for 227x227 images (the paper says 224, which does not fit its
    55x55 outputs) and 1000 classes. The size of the first fully connected layer follows from the
    image size.

    Attributes:
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate after each of them.
    """

    FLAT_HEAD = True
    MIN_IMAGE_SIZE = 67

    fc_layers: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        ends: layers.EndPoints = {}
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
                x = local_response_norm(x) if i < 5 else x
                x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        ends['conv5_pool'] = x
        return ends


def local_response_norm(x: jax.Array) -> jax.Array:
    """Normalises by five neighbouring channels (AlexNet paper, section 3.3, its constants)."""
    around = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), 'SAME')
    return x / (2 + 1e-4 * around) ** 0.75
