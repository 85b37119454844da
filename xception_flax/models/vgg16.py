"""VGG-16 (Simonyan and Zisserman, 2015), as in `keras.applications.VGG16`."""

import flax.linen as nn
import jax

from xception_flax import ops
from xception_flax.models import layers
from xception_flax.models.base import Network

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(Network):
    """VGG-16: 138,357,544 parameters with the defaults, 224x224 images and 1000 classes.

    The size of the first fully connected layer follows from the image size.

    Attributes:
      batch_norm: whether batch norm follows each convolution (the paper predates it).
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate after each of them.
      bn_momentum, bn_epsilon, bn_group_size: options of batch norm, see `Network.norm`.
    """

    FLAT_HEAD = True

    batch_norm: bool = False
    fc_layers: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_group_size: int = 0

    def features(self, x: jax.Array, train: bool, features_only: bool) -> layers.EndPoints:
        """Maps images `[N, H, W, 3]` to features; see `Network.features`."""
        ends: layers.EndPoints = {}
        for stage, (features, convolutions) in enumerate(STAGES, start=1):
            for i in range(1, convolutions + 1):
                x = layers.Conv(
                    features,
                    (3, 3),
                    dtype=self.dtype,
                    param_dtype=layers.wide(self.dtype),
                    name=f'block{stage}_conv{i}',
                )(x)
                if self.batch_norm:
                    x = self.norm()(name=f'block{stage}_bn{i}')(x, train)
                x = nn.relu(x)
            ends[f'block{stage}'] = x
            x = ops.max_pool(x, 2, 2, 'VALID')
        ends['block5_pool'] = x
        return ends
