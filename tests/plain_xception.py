"""A small Xception in JAX's own operations, without flax and without the package.

It is the one of `stem='small', middle_repeats=1, dropout=0`, and takes its parameters.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-3


def plain_logits(params: dict, x: jax.Array, group_size: int) -> jax.Array:
    """A small Xception in training, `[N, H, W, 3]` to `[N, CLASSES]`, in plain operations."""

    def convolve(x, kernel, strides=1, groups=1):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides, strides), 'SAME', feature_group_count=groups,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )  # fmt: skip

    def bn(p, x):
        groups = x.reshape(-1, group_size or len(x), *x.shape[1:])
        mean = groups.mean((1, 2, 3), keepdims=True)
        var = jnp.square(groups - mean).mean((1, 2, 3), keepdims=True)
        y = (groups - mean) / jnp.sqrt(var + EPSILON) * p['scale'] + p['bias']
        return y.reshape(x.shape)

    def conv(p, x, strides=1):
        return bn(p['bn'], convolve(x, p['conv']['kernel'], strides))

    def sepconv(p, x):
        x = convolve(x, p['depthwise']['kernel'], groups=x.shape[-1])
        return bn(p['bn'], convolve(x, p['pointwise']['kernel']))

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')

    def downsample(p, x, leading_relu=True):
        y = sepconv(p['sepconv1'], jax.nn.relu(x) if leading_relu else x)
        return pool(sepconv(p['sepconv2'], jax.nn.relu(y))) + conv(p['shortcut'], x, 2)

    entry, middle, exit_ = (params[f'{name}_flow'] for name in ('entry', 'middle', 'exit'))
    x = jax.nn.relu(conv(entry['conv1'], x))
    x = jax.nn.relu(conv(entry['conv2'], x))
    for i in (1, 2, 3):
        x = downsample(entry[f'block{i}'], x, leading_relu=i > 1)
    y = x
    for i in (1, 2, 3):
        y = sepconv(middle['block1'][f'sepconv{i}'], jax.nn.relu(y))
    x = downsample(exit_['block1'], x + y)
    x = jax.nn.relu(sepconv(exit_['sepconv3'], x))
    x = jax.nn.relu(sepconv(exit_['sepconv4'], x))
    return x.mean((1, 2)) @ params['logits']['kernel'] + params['logits']['bias']
