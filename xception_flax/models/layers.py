"""The building blocks that the networks share: batch norm, convolution, separable convolution."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax import ops

Dtype = Any
# Any constructor of a module, with some of its options bound by functools.partial.
Module = Callable[..., Any]
Pool = Callable[[jax.Array], jax.Array]
# The last features of each resolution, `[N, H, W, C]`, by the name of what they come from.
EndPoints = dict[str, jax.Array]

# What may stand between the depthwise and the pointwise convolution (paper, section 4.7).
INTERMEDIATE = ('none', 'relu', 'elu', 'bn', 'bn_relu', 'bn_elu')
OUTPUT_STRIDES = (8, 16, 32)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {'relu': nn.relu, 'elu': nn.elu}

# Keras's default for convolutions and dense layers, and so that of its Xception.
kernel_init = nn.initializers.glorot_uniform()
Conv = functools.partial(nn.Conv, kernel_init=kernel_init, conv_general_dilated=ops.conv)


def wide(dtype: Dtype) -> Dtype:
    """The type of parameters, statistics and logits of a network that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nn.Module):
    """Batch normalisation over `[N, H, W]`, with statistics of at least float32.

    Under `jax.jit` on a sharded batch, `N` is the *global* batch. With `group_size` the batch is
    cut into groups of that many neighbouring pictures, each normalised by its own statistics, and
    the running statistics take the mean over the groups. `group_size=32` is then what each of the
    paper's 60 workers did, on any number of devices; and where a group lies within one device,
    nothing is communicated.

    The running variance is the biased one, as in Keras. With the parameter 'folded_bias', which
    `inference.folding` makes, all that it does is to add that.

    Attributes:
      momentum: share of the running statistics that a step keeps.
      epsilon: added to the variance.
      use_scale: whether there is a learned scale (gamma).
      group_size: pictures per group; 0 for one group, the whole batch.
      dtype: type of the result.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    use_scale: bool = True
    group_size: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, pool: Pool | None = None) -> jax.Array:
        """Normalises `x`, `[N, ..., C]`; in training it also updates the running statistics.

        Args:
          x: features.
          train: whether to normalise by the batch's statistics.
          pool: max pooling of what is normalised. It is done first, as it gives the same there and
            leaves fewer values to be normalised; where the scale is negative, of the negatives.

        Raises:
          ValueError: `N` is no multiple of `group_size`.
        """
        features, dtype = x.shape[-1], wide(self.dtype)
        if self.has_variable('params', 'folded_bias'):  # all else is in the convolution before it
            x = pool(x) if pool else x
            return (x + self.get_variable('params', 'folded_bias')).astype(self.dtype)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,), dtype)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (features,), dtype)
        bias = self.param('bias', nn.initializers.zeros, (features,), dtype)
        scale = jnp.ones((), dtype)
        if self.use_scale:
            scale = self.param('scale', nn.initializers.ones, (features,), dtype)
        turn = jnp.ones((), dtype)
        if pool and self.use_scale:
            turn = jnp.where(scale < 0, -turn, turn)
            x, scale = x * turn.astype(x.dtype), scale * turn

        if train:
            mean, var = _statistics(x, self.group_size or x.shape[0])
            if not self.is_initializing():
                for running, new in ((running_mean, mean * turn), (running_var, var)):
                    new = jnp.mean(new, 0).reshape(features)
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        else:
            mean, var = running_mean.value * turn, running_var.value
        x = pool(x) if pool else x
        grouped = x.reshape(mean.size // features, -1, *x.shape[1:])
        multiplier = jax.lax.rsqrt(var + self.epsilon) * scale
        return ops.normalise(grouped, mean, multiplier, bias).astype(self.dtype).reshape(x.shape)


def _statistics(x: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over each group of `x`, `[N, ..., C]`: `[N / group_size, 1, ..., 1, C]`."""
    if x.shape[0] % group_size:
        raise ValueError(
            f'a batch of {x.shape[0]} cannot be cut into batch-norm groups of {group_size}'
        )
    grouped = x.reshape(-1, group_size, *x.shape[1:]).astype(wide(x.dtype))
    axes = tuple(range(1, grouped.ndim - 1))
    mean = jnp.mean(grouped, axes, keepdims=True)
    mean_square = jnp.mean(jnp.square(grouped), axes, keepdims=True)
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0.0)


class ConvBN(nn.Module):
    """A convolution, then batch norm.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      strides: stride in both directions.
      padding: 'SAME', 'VALID', or pixels on each side.
      dilation: distance of the inputs that the kernel meets.
      use_bias: whether the convolution has a bias.
      norm: makes the batch norm.
      dtype: compute type.
    """

    features: int
    kernel: int = 3
    strides: int = 1
    padding: str | int = 'SAME'
    dilation: int = 1
    use_bias: bool = False
    norm: Module = BatchNorm
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, pool: Pool | None = None) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features]`, before `pool`."""
        x = Conv(
            self.features,
            (self.kernel, self.kernel),
            self.strides,
            self.padding,
            kernel_dilation=self.dilation,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=wide(self.dtype),
            name='conv',
        )(x)
        return self.norm(name='bn')(x, train, pool)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel by itself.

    Attributes:
      strides: stride in both directions.
      dilation: distance of the inputs that the kernel meets, and the pixels of padding.
      dtype: compute type.
    """

    strides: int = 1
    dilation: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, C]`."""
        kernel = self.param('kernel', kernel_init, (3, 3, 1, x.shape[-1]), wide(self.dtype))
        return ops.depthwise_conv(
            x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.dilation
        )


class SeparableConv(nn.Module):
    """Depthwise 3x3, then pointwise 1x1 convolution, then batch norm.

    Attributes:
      features: output channels.
      strides: stride of the depthwise convolution.
      dilation: distance of the inputs that its kernel meets.
      intermediate: what stands between depthwise and pointwise, one of `INTERMEDIATE`. The paper
        finds nothing best (Figure 10); DeepLabv3+ puts batch norm and ReLU there.
      norm: makes the batch norm.
      dtype: compute type.
    """

    features: int
    strides: int = 1
    dilation: int = 1
    intermediate: str = 'none'
    norm: Module = BatchNorm
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, pool: Pool | None = None) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features]`, before `pool`."""
        depthwise = DepthwiseConv(self.strides, self.dilation, self.dtype, name='depthwise')
        y = depthwise(x)
        convolve: Callable[..., jax.Array] = ops.conv
        if self.intermediate == 'none':
            # Both halves as one operation, which starts from `x`: a compiler then drops `y`.
            kernel: jax.Array = depthwise.get_variable('params', 'kernel')
            convolve = functools.partial(self._from_input, x, kernel)
        for step in self.intermediate.split('_'):
            if step == 'bn':
                y = self.norm(name='depthwise_bn')(y, train)
            elif step != 'none':
                y = ACTIVATIONS[step](y)
        y = Conv(
            self.features,
            (1, 1),
            use_bias=False,
            dtype=self.dtype,
            param_dtype=wide(self.dtype),
            conv_general_dilated=convolve,
            name='pointwise',
        )(y)
        return self.norm(name='bn')(y, train, pool)

    def _from_input(
        self,
        x: jax.Array,
        kernel: jax.Array,
        y: jax.Array,
        pointwise: jax.Array,
        *_: Any,
        **__: Any,
    ) -> jax.Array:
        """Takes the place of the pointwise convolution of `y` by an operation on `x`."""
        return ops.separable_conv(
            x.astype(y.dtype), kernel.astype(y.dtype), pointwise, self.strides, self.dilation
        )


def max_pool(
    x: jax.Array, strides: int = 2, dilation: int = 1, symmetric: bool = False
) -> jax.Array:
    """3x3 max pooling: `[N, H, W, C]` to `[N, H / strides, W / strides, C]`, rounded up.

    The windows lie as those of stride 2 do, whatever the stride and the dilation.

    Args:
      x: features.
      strides: distance of the windows.
      dilation: distance of the pixels within a window; above 1 the stride has to be 1.
      symmetric: whether there is one pixel of padding on either side, as in PyTorch. TensorFlow's
        SAME has both after a side of an even number of pixels.
    """
    # A window with holes sees every so many-th row and column only: they are taken apart, so that
    # there are no holes.
    n, height, width, channels = x.shape
    rest = (0, -height % dilation), (0, -width % dilation)
    whole = jnp.pad(x, ((0, 0), *rest, (0, 0)), constant_values=-jnp.inf)
    parts = whole.reshape(n, whole.shape[1] // dilation, dilation, -1, dilation, channels)
    parts = jnp.moveaxis(parts, (2, 4), (1, 2))  # [N, dilation, dilation, h, w, C]
    before = [1 if symmetric else side % 2 for side in parts.shape[3:5]]
    top, left = ((pixels, 2 - pixels) for pixels in before)
    pooled = ops.max_pool(parts.reshape(-1, *parts.shape[3:]), 3, strides, (top, left))
    pooled = pooled.reshape(*parts.shape[:3], *pooled.shape[1:])
    rows, columns = (side * dilation for side in pooled.shape[3:5])
    pooled = jnp.moveaxis(pooled, (1, 2), (2, 4)).reshape(n, rows, columns, channels)
    return pooled[:, :height, :width]


def widen(channels: Sequence[int], width: float) -> Any:
    """Multiplies numbers of channels, rounding to multiples of 8 (none is below 8)."""
    if width == 1:
        return tuple(channels)
    return tuple(max(8, round(c * width / 8) * 8) for c in channels)


def atrous(strides: Sequence[int], output_stride: int) -> list[tuple[int, int]]:
    """Trades strides for dilation, so that features are not coarser than `output_stride`.

    With the same weights, each layer then computes what it did, but at more places (Chen et al.,
    "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017).

    Args:
      strides: of the layers, in their order.
      output_stride: the largest product of strides.

    Returns:
      Each layer's stride, and the dilation of what it sees.
    """
    found, total, dilation = [], 1, 1
    for stride in strides:
        traded = total * stride > output_stride
        found.append((1 if traded else stride, dilation))
        if traded:
            dilation *= stride
        else:
            total *= stride
    return found


def dense(features: int, dtype: Dtype, name: str) -> nn.Dense:
    """A fully connected layer that computes in `dtype`."""
    return nn.Dense(
        features, kernel_init=kernel_init, dtype=dtype, param_dtype=wide(dtype), name=name
    )


def classify(
    x: jax.Array,
    num_classes: int,
    fc_layers: tuple[int, ...],
    dropout: float,
    dtype: Dtype,
    train: bool,
) -> jax.Array:
    """The end of a network: mean over places, fully connected layers, dropout, classifier.

    Call it inside a compact method; its parameters are 'fc1', ... and 'logits' there.

    Args:
      x: features, `[N, H, W, C]`.
      num_classes: number of logits.
      fc_layers: widths of the fully connected layers, each with a ReLU.
      dropout: rate before the classifier.
      dtype: compute type.
      train: whether to drop out.

    Returns:
      Logits, `[N, num_classes]`.
    """
    x = jnp.mean(x, (1, 2), dtype=wide(dtype))
    for i, features in enumerate(fc_layers, start=1):
        x = nn.relu(dense(features, dtype, name=f'fc{i}')(x))
    x = nn.Dropout(dropout, deterministic=not train)(x)
    return dense(num_classes, wide(dtype), name='logits')(x)


def classify_flat(
    x: jax.Array,
    num_classes: int,
    fc_layers: tuple[int, ...],
    dropout: float,
    dtype: Dtype,
    train: bool,
) -> jax.Array:
    """The end of older networks: fully connected layers on all features, each with dropout.

    Like `classify`, but that the first layer's parameters follow the pictures' size.
    """
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(fc_layers, start=1):
        x = nn.relu(dense(features, dtype, name=f'fc{i}')(x))
        x = nn.Dropout(dropout, deterministic=not train)(x)
    return dense(num_classes, wide(dtype), name='logits')(x)


# Lowest and highest values of the options that networks have in common.
RANGES = {
    'num_classes': (1, 10**6),
    'width': (1 / 64, 64),
    'middle_repeats': (0, 1000),
    'dropout': (0, 0.999),
    'bn_momentum': (0, 1),
    'bn_epsilon': (1e-12, 1),
    'bn_group_size': (0, 10**9),
}


def check_options(model: Any, choices: dict[str, tuple]) -> None:
    """Checks a network's options.

    Args:
      model: the network.
      choices: the values that an option may have, by its name.

    Raises:
      ValueError: one has a value that makes no network.
    """
    for name, values in choices.items():
        if getattr(model, name) not in values:
            raise ValueError(f'{name} is {getattr(model, name)!r}; choose from {values}')
    for name, (low, high) in RANGES.items():
        value = getattr(model, name, low)
        if not low <= value <= high:
            raise ValueError(f'{name} is {value}; it must be between {low} and {high}')
    fc_layers = getattr(model, 'fc_layers', ())
    if not all(isinstance(features, int) and features > 0 for features in fc_layers):
        raise ValueError(f'fc_layers is {fc_layers}; give whole numbers above 0')


def check_size(model: Any, x: jax.Array) -> None:
    """Checks that pictures `[N, H, W, 3]` are large enough for a network.

    Raises:
      ValueError: they are not.
    """
    if min(x.shape[1:3]) < model.min_image_size:
        raise ValueError(
            f'pictures of {x.shape[1]}x{x.shape[2]} are too small: {type(model).__name__} takes '
            f'{model.min_image_size} pixels or more'
        )
