"""The building blocks that the networks share: batch norm, convolution, separable convolution."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax import ops

Dtype = Any
# A constructor of a module, some of its options bound by functools.partial.
Module = Callable[..., Any]
Pool = Callable[[jax.Array], jax.Array]
# The last features of each resolution, `[N, H, W, C]`, by the module that they come from.
EndPoints = dict[str, jax.Array]

# What may be between the depthwise and the pointwise convolution (paper, section 4.7).
INTERMEDIATE = ('none', 'relu', 'elu', 'bn', 'bn_relu', 'bn_elu')
OUTPUT_STRIDES = (8, 16, 32)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {'relu': nn.relu, 'elu': nn.elu}

# The default of Keras for convolutions and dense layers, which its Xception uses.
kernel_init = nn.initializers.glorot_uniform()
Conv = functools.partial(nn.Conv, kernel_init=kernel_init, conv_general_dilated=ops.conv)


def wide(dtype: Dtype) -> Dtype:
    """The type of parameters, statistics and logits of a network that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


class Normalised(NamedTuple):
    """`x * multiplier + offset`, which the next kernel computes as it reads `x`.

    Attributes:
      x: `[N, H, W, C]`.
      multiplier, offset: `[C]`.
    """

    x: jax.Array
    multiplier: jax.Array
    offset: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the features."""
        return self.x.shape


def applied(x: jax.Array | Normalised) -> jax.Array:
    """Computes what is left to do, `[N, H, W, C]`."""
    if not isinstance(x, Normalised):
        return x
    return (x.x * x.multiplier + x.offset).astype(x.x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over `[N, H, W]`, with statistics of at least float32.

    Under `jax.jit` on a sharded batch, `N` is the *global* batch. With `group_size` the batch is
    cut into groups of neighbouring images, each normalised by its own statistics, and the running
    statistics take the mean over the groups. `group_size=32` is then what each of the paper's 60
    workers did, on any number of devices; a group within one device needs no communication.

    The running variance is the biased one, as in Keras. With the parameter 'folded_bias', which
    `inference.folding` makes, the layer only adds that.

    Attributes:
      momentum: fraction of the running statistics that a step keeps.
      epsilon: added to the variance.
      use_scale: whether there is a learned scale (gamma).
      group_size: images per group; 0 for one group, the whole batch.
      dtype: type of the result.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    use_scale: bool = True
    group_size: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, sums: jax.Array | None = None) -> Any:
        """Normalises `x`, `[N, ..., C]`; in training it also updates the running statistics.

        Args:
          x: features.
          train: whether to normalise by the batch's statistics.
          sums: the sums of `x` and of its square over all but the last axis, `[2, C]`, if they are
            known. `x` and `sums` are then of the features times `signs`.

        Returns:
          The normalised features; `Normalised` if `sums` are given.

        Raises:
          ValueError: `N` is no multiple of `group_size`.
        """
        features, dtype = x.shape[-1], wide(self.dtype)
        signs = 1 if sums is None else self.signs()
        if self.has_variable('params', 'folded_bias'):  # all else is in the convolution before it
            bias: jax.Array = self.get_variable('params', 'folded_bias')
            if sums is not None:
                return Normalised(self._pool(x), jnp.ones(features, dtype), bias)
            return (self._pool(x) + bias).astype(self.dtype)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,), dtype)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (features,), dtype)
        bias = self.param('bias', nn.initializers.zeros, (features,), dtype)
        scale = jnp.ones((), dtype)
        if self.use_scale:
            scale = self.param('scale', nn.initializers.ones, (features,), dtype)

        if train:
            mean, var = _statistics(x, self.group_size) if sums is None else _of_sums(x, sums)
            if not self.is_initializing():
                for running, new in ((running_mean, signs * mean), (running_var, var)):
                    new = jnp.mean(new.reshape(-1, features), 0)
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        else:
            mean, var = signs * running_mean.value, running_var.value
        multiplier = jax.lax.rsqrt(var + self.epsilon) * scale * signs
        if sums is not None:
            return Normalised(self._pool(x), multiplier, bias - mean * multiplier)
        return ops.normalise(self._pool(x, scale), mean, multiplier, bias).astype(self.dtype)

    def signs(self) -> jax.Array | int:
        """Factors of the features for which it is quicker to normalise: 1 or -1, `[C]`."""
        return 1

    def _pool(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """What is normalised: all of `x`, `[N, ..., C]`."""
        return x


class PooledBatchNorm(BatchNorm):
    """Batch norm, then max pooling, computed in the other order: fewer values are normalised.

    Normalisation is `a * x + b` in each channel, where `a` has the sign of the learned scale. Over
    the values of a window,

        max(a * x + b) = a * max(x) + b     where a >= 0
        max(a * x + b) = a * min(x) + b     where a < 0, with min(x) = -max(-x)

    The statistics are those of all of `x`, as without pooling. The sign that turns `min` into `max`
    is a factor of the pointwise kernel where that is possible: then no array is multiplied.

    Attributes:
      pool: the max pooling.
    """

    pool: Pool = lambda x: x

    def _pool(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        if scale is None or not self.use_scale:
            return self.pool(x)
        signs = _signs(scale).astype(x.dtype)
        return signs * self.pool(signs * x)

    def signs(self) -> jax.Array | int:
        """The sign of the learned scale."""
        known = self.has_variable('params', 'scale')
        return _signs(self.get_variable('params', 'scale')) if known else 1


def _signs(scale: jax.Array) -> jax.Array:
    return jnp.where(scale < 0, -1, 1).astype(scale.dtype)


def pooled(norm: Any, pool: Pool | None) -> Module:
    """Adds max pooling to `norm`, a partial of `BatchNorm`; returns `norm` if `pool` is None."""
    if pool is None:
        return norm
    return functools.partial(PooledBatchNorm, *norm.args, **{**norm.keywords, 'pool': pool})


def _statistics(x: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the group of each image of `x`, `[N, ..., C]`: `[N, 1, ..., 1, C]`.

    Without groups, of the whole batch: `[1, 1, ..., 1, C]`. The large array is never cut into
    groups, so it stays sharded by image, however many groups and devices there are.

    One pass over `x` is exact enough: tests/models/README.md has the measured error.
    """
    if not len(x) or len(x) % (group_size or len(x)):
        raise ValueError(
            f'a batch of {len(x)} cannot be cut into batch-norm groups of {group_size}'
            if len(x)
            else 'an empty batch has no mean'
        )
    x = x.astype(wide(x.dtype))
    axes = tuple(range(1, x.ndim - 1))
    if not group_size:
        axes = (0, *axes)
    mean, mean_square = (jnp.mean(a, axes, keepdims=True) for a in (x, jnp.square(x)))
    if group_size:

        def over_group(each: jax.Array) -> jax.Array:
            means = each.reshape(-1, group_size, each.shape[-1]).mean(1)
            return jnp.repeat(means, group_size, 0).reshape(each.shape)

        mean, mean_square = over_group(mean), over_group(mean_square)
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0.0)


def _of_sums(x: jax.Array, sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of `x`, `[N, ..., C]`: `[C]` each; see `BatchNorm`."""
    mean, mean_square = sums / math.prod(x.shape[:-1])
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0.0)


class ConvBN(nn.Module):
    """A convolution, then batch norm.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      strides: stride in both directions.
      padding: 'SAME', 'VALID', or pixels on each side.
      dilation: distance between the inputs of the kernel.
      use_bias: whether the convolution has a bias.
      norm: constructor of batch norm.
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
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features]`."""
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
        return self.norm(name='bn')(x, train)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel by itself.

    Attributes:
      channels: channels of the input.
      strides: stride in both directions.
      dilation: distance between the inputs of the kernel, and pixels of padding.
      dtype: compute type.
    """

    channels: int
    strides: int = 1
    dilation: int = 1
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Makes the kernel, `[3, 3, 1, channels]`."""
        shape = (3, 3, 1, self.channels)
        self.kernel = self.param('kernel', kernel_init, shape, wide(self.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, C]`."""
        x, kernel = x.astype(self.dtype), self.kernel.astype(self.dtype)
        return ops.depthwise_conv(x, kernel, self.strides, self.dilation)


class PointwiseConv(nn.Module):
    """A 1x1 convolution.

    Attributes:
      channels: channels of the input.
      features: output channels.
      dtype: compute type.
    """

    channels: int
    features: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Makes the kernel, `[1, 1, channels, features]`."""
        shape = (1, 1, self.channels, self.features)
        self.kernel = self.param('kernel', kernel_init, shape, wide(self.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H, W, features]`."""
        x, kernel = x.astype(self.dtype), self.kernel.astype(self.dtype)
        return ops.conv(x, kernel, (1, 1), 'VALID', dimension_numbers=ops.NHWC)


class SeparableConv(nn.Module):
    """Depthwise 3x3, then pointwise 1x1 convolution, then batch norm.

    Attributes:
      features: output channels.
      strides: stride of the depthwise convolution.
      dilation: distance between the inputs of its kernel.
      leading_relu: whether a ReLU precedes the depthwise convolution.
      intermediate: what is between depthwise and pointwise, one of `INTERMEDIATE`. The paper finds
        nothing best (Figure 10); DeepLabv3+ puts batch norm and ReLU there.
      norm: constructor of batch norm.
      pool: max pooling behind batch norm, or None.
      dtype: compute type.
    """

    features: int
    strides: int = 1
    dilation: int = 1
    leading_relu: bool = False
    intermediate: str = 'none'
    norm: Module = BatchNorm
    pool: Pool | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array | Normalised, train: bool) -> jax.Array | Normalised:
        """Maps `[N, H, W, C]` to `[N, H / strides, W / strides, features]`, less by `pool`.

        Where a kernel computes it, batch norm is left to the next one, or to `applied`.
        """
        norm = pooled(self.norm, self.pool)(name='bn')
        channels = x.shape[-1]
        depthwise = DepthwiseConv(
            channels, self.strides, self.dilation, self.dtype, name='depthwise'
        )
        pointwise = PointwiseConv(channels, self.features, self.dtype, name='pointwise')
        if how := self._launch(x.shape, norm):
            if not isinstance(x, Normalised):
                x = Normalised(x.astype(self.dtype), jnp.ones(channels), jnp.zeros(channels))
            kernels = depthwise.kernel, pointwise.kernel * norm.signs()
            y, sums = ops.fused_separable_conv(how, *x, *kernels)
            return norm(y, train, sums)
        y = applied(x)
        if self.leading_relu:
            y = nn.relu(y)
        if self.intermediate == 'none' and not ops.reference_only():
            operands = (y, depthwise.kernel, pointwise.kernel)
            y, first, second = (array.astype(self.dtype) for array in operands)
            y = ops.separable_conv(y, first, second, self.strides, self.dilation)
        else:
            y = depthwise(y)
            for step in self.intermediate.split('_'):
                if step == 'bn':
                    y = self.norm(name='depthwise_bn')(y, train)
                elif step != 'none':
                    y = ACTIVATIONS[step](y)
            y = pointwise(y)
        return norm(y, train)

    def _launch(self, shape: Sequence[int], norm: Any) -> ops.Launch | None:
        """How a kernel computes the layer for an input of `shape`, or None."""
        plain = (self.strides, self.dilation, self.intermediate) == (1, 1, 'none')
        if not plain or not self.leading_relu or norm.group_size:
            return None
        return ops.launch(shape, self.features, self.dtype)


def max_pool(
    x: jax.Array, strides: int = 2, dilation: int = 1, symmetric: bool = False
) -> jax.Array:
    """3x3 max pooling: `[N, H, W, C]` to `[N, H / strides, W / strides, C]`, rounded up.

    The windows have the positions of those of stride 2, whatever the stride and the dilation.

    Args:
      x: features.
      strides: distance between windows.
      dilation: distance between the pixels of a window; above 1 the stride has to be 1.
      symmetric: whether there is one pixel of padding on either side, as in PyTorch. TensorFlow's
        SAME has both behind a side of an even number of pixels.
    """
    # A dilated window sees every `dilation`-th row and column. These are separated into images of
    # their own, on which the windows are dense.
    n, height, width, channels = x.shape
    rest = (0, -height % dilation), (0, -width % dilation)
    whole = jnp.pad(x, ((0, 0), *rest, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (side // dilation for side in whole.shape[1:3])
    parts = whole.reshape(n, rows, dilation, columns, dilation, channels)
    parts = jnp.moveaxis(parts, (2, 4), (1, 2))  # [N, dilation, dilation, h, w, C]
    before = [1 if symmetric else side % 2 for side in parts.shape[3:5]]
    top, left = ((pixels, 2 - pixels) for pixels in before)
    images = parts.reshape(n * dilation**2, *parts.shape[3:])
    pooled = ops.max_pool(images, 3, strides, (top, left))
    pooled = pooled.reshape(*parts.shape[:3], *pooled.shape[1:])
    rows, columns = (side * dilation for side in pooled.shape[3:5])
    pooled = jnp.moveaxis(pooled, (1, 2), (2, 4)).reshape(n, rows, columns, channels)
    return pooled[:, :height, :width]


class Parts(NamedTuple):
    """Constructors of the layers that the blocks of a network are built from.

    Attributes:
      conv: constructor of `ConvBN`.
      sepconv: constructor of `SeparableConv`.
      pool: max pooling.
    """

    conv: Module
    sepconv: Module
    pool: Callable[..., jax.Array]

    @classmethod
    def of(
        cls, norm: Module, dtype: Dtype, intermediate: str = 'none', symmetric: bool = False
    ) -> 'Parts':
        """Binds the options that all blocks have in common; see the layers for them."""
        return cls(
            functools.partial(ConvBN, norm=norm, dtype=dtype),
            functools.partial(SeparableConv, intermediate=intermediate, norm=norm, dtype=dtype),
            functools.partial(max_pool, symmetric=symmetric),
        )


def widen(channels: Sequence[int], width: float) -> Any:
    """Multiplies numbers of channels, rounded to multiples of 8 (8 at least)."""
    if width == 1:
        return tuple(channels)
    return tuple(max(8, round(c * width / 8) * 8) for c in channels)


def atrous(strides: Sequence[int], output_stride: int) -> list[tuple[int, int]]:
    """Trades strides for dilation, so that features are not coarser than `output_stride`.

    With the same weights, each layer then computes the same at more positions (Chen et al.,
    "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017).

    Args:
      strides: nominal stride of each layer, in order.
      output_stride: the largest product of strides.

    Returns:
      Stride of each layer, and dilation of its input.
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


def classifier(num_classes: int, dtype: Dtype, bias: float = 0.0) -> nn.Dense:
    """The layer of the logits, which computes in float32 even on devices that by default do not.

    Args:
      num_classes: number of logits.
      dtype: compute type of the network.
      bias: initial bias.
    """
    return nn.Dense(
        num_classes,
        kernel_init=kernel_init,
        bias_init=nn.initializers.constant(bias),
        dtype=wide(dtype),
        param_dtype=wide(dtype),
        precision=jax.lax.Precision.HIGHEST,  # TPUs round operands to bfloat16, GPUs to TF32
        name='logits',
    )
