"""VGG-16 (Simonyan and Zisserman, 2015), as `keras.applications.VGG16`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax import ops
from xception_flax.models import layers

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Module):
    """VGG-16: 138,357,544 parameters with the defaults, 224x224 pictures and 1000 classes.

    The first fully connected layer's size follows from that of the pictures.

    Attributes:
      num_classes: number of logits.
      batch_norm: whether batch norm follows each convolution (the paper is from before it).
      fc_layers: widths of fully connected layers before the classifier.
      dropout: rate after each of them.
      bn_momentum: share of the running statistics that a step keeps.
      bn_epsilon: added to the variance.
      bn_group_size: pictures that share batch statistics; 0 for the whole global batch.
      dtype: compute type; parameters, statistics and logits are float32, or float64 if it is.
    """

    num_classes: int = 1000
    batch_norm: bool = False
    fc_layers: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_group_size: int = 0
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
        ends: layers.EndPoints = {}
        x = x.astype(self.dtype)
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
                    norm = layers.BatchNorm(
                        self.bn_momentum,
                        self.bn_epsilon,
                        group_size=self.bn_group_size,
                        dtype=self.dtype,
                        name=f'block{stage}_bn{i}',
                    )
                    x = norm(x, train)
                x = nn.relu(x)
            ends[f'block{stage}'] = x
            x = ops.max_pool(x, 2, 2, 'VALID')
        ends['block5_pool'] = x
        if features_only:
            return ends
        return layers.classify_flat(
            x, self.num_classes, self.fc_layers, self.dropout, self.dtype, train
        )
