"""From uint8 pictures to what a network takes. It is done on the device, as part of the step."""

import jax
import jax.numpy as jnp

MODES = ('tf', 'caffe', 'torch')  # named as in keras.applications


def scale(pictures: jax.Array, mode: str) -> jax.Array:
    """Scales RGB pictures `[N, H, W, 3]` from uint8 to float32.

    Args:
      pictures: the pictures.
      mode: 'tf' ([-1, 1]), 'caffe' (BGR less ImageNet's mean: Keras's VGG-16 and ResNet) or 'torch'
        (less ImageNet's mean, by its standard deviation: most of timm's networks).
    """
    x = pictures.astype(jnp.float32)
    if mode == 'caffe':
        return x[..., ::-1] - jnp.array([103.939, 116.779, 123.68])
    if mode == 'torch':
        return (x / 255 - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    return x / 127.5 - 1
