"""Scales uint8 images to the input range of a network; runs on the device, within the step."""

import jax
import jax.numpy as jnp

MODES = ('tf', 'unit', 'caffe', 'torch')  # 'unit' apart, named as in keras.applications


def scale(images: jax.Array, mode: str) -> jax.Array:
    """Scales RGB images `[N, H, W, 3]` from uint8 to float32.

    Args:
      images: the images.
      mode: 'tf' ([-1, 1]), 'unit' ([0, 1]), 'caffe' (BGR minus ImageNet's mean; VGG-16 and ResNet
        of Keras) or 'torch' (minus ImageNet's mean, over its standard deviation; most networks of
        timm).
    """
    x = images.astype(jnp.float32)
    if mode == 'caffe':
        return x[..., ::-1] - jnp.array([103.939, 116.779, 123.68])
    if mode == 'torch':
        return (x / 255 - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    return x / 255 if mode == 'unit' else x / 127.5 - 1
