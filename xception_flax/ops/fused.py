"""Batch norm's last step, ReLU and a separable convolution as one operation: kernels for TPU."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from xception_flax.ops.lowering import current

# Vector memory of a core, by JAX's name of the device.
MEMORY = {
    'TPU v4': 16 * 2**20,
    'TPU v5 lite': 128 * 2**20,
    'TPU v5': 64 * 2**20,
    'TPU v5p': 64 * 2**20,
    'TPU v6 lite': 128 * 2**20,
}
DTYPES = ('float32', 'bfloat16')
LEAST = 64  # channels; fewer leave registers empty
IMAGES = (16, 8)  # per grid step; 16 fill the registers of bfloat16


class Layer(NamedTuple):
    """What the kernels are compiled for.

    Attributes:
      shape: of the input on one device, `[N, H, W, C]`.
      features: channels of the output.
      dtype: name of the type of both.
    """

    shape: tuple[int, ...]
    features: int
    dtype: str

    def __str__(self) -> str:
        return f'{"x".join(map(str, self.shape))} to {self.features}'


rejected: set[Layer] = set()  # for which XLA's own operations are better; see `trial`
_met: contextvars.ContextVar[dict[Layer, Any] | None] = contextvars.ContextVar('met', default=None)


@contextlib.contextmanager
def collected() -> Iterator[dict[Layer, Any]]:
    """Collects the layers that 'auto' can launch kernels for in the context, with their steps."""
    layers: dict[Layer, Any] = {}
    token = _met.set(layers)
    try:
        yield layers
    finally:
        _met.reset(token)


class Launch(NamedTuple):
    """How the kernels run.

    Attributes:
      step: what a grid step takes, a `kernels.Step`.
      batch: how batches are sharded; None on one device.
    """

    step: Any
    batch: NamedSharding | None

    def on_each_device(self, function: Callable, sharded: Sequence[bool], outputs: int) -> Callable:
        """Makes `function` compute with each device's part of a batch.

        Args:
          function: takes and returns arrays; it is also given `total`, which sums over devices.
          sharded: of each operand, whether it is a batch.
          outputs: number of results. The first is a batch, the others are the same everywhere.
        """
        if self.batch is None:
            return functools.partial(function, total=lambda x: x)
        (axis,), whole = self.batch.spec, PartitionSpec()
        return jax.shard_map(
            functools.partial(function, total=functools.partial(lax.psum, axis_name=axis)),
            mesh=self.batch.mesh,
            in_specs=tuple(self.batch.spec if batch else whole for batch in sharded),
            out_specs=(self.batch.spec, *[whole] * (outputs - 1)),
            check_vma=False,
        )


def launch(shape: Sequence[int], features: int, dtype: Any) -> Launch | None:
    """How the kernels run for an input of `shape`, or None if they do not.

    They do not on other devices than TPUs, where the operands do not fit into vector memory, where
    it is not known how the batch is sharded, with less than `LEAST` channels, and where they lost
    the comparison on the device (`trial`).

    Args:
      shape: of the input, `[N, H, W, C]`.
      features: channels of the output.
      dtype: type of both.
    """
    choice, platform, batch = current()
    forced = choice == 'pallas'
    if not forced and (choice, platform) != ('auto', 'tpu'):
        return None
    if (batch is None and jax.device_count() > 1) or (not forced and shape[3] < LEAST):
        return None
    device = jax.devices()[0] if batch is None else batch.mesh.devices.flat[0]
    memory = None if device.platform == 'cpu' else MEMORY.get(device.device_kind, 0)
    devices, dtype = 1 if batch is None else batch.num_devices, jnp.dtype(dtype)
    if shape[0] % devices or (memory is not None and dtype.name not in DTYPES):
        return None
    local = shape[0] // devices, *shape[1:]
    step = _kernels().best_step(local, features, IMAGES, dtype.itemsize, memory)
    if step is None:
        return None
    layer, layers = Layer(local, features, dtype.name), _met.get()
    if layers is not None and not forced:
        layers[layer] = step
    elif layer in rejected and not forced:
        return None
    return Launch(step, batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused_separable_conv(
    how: Launch,
    x: jax.Array,
    multiplier: jax.Array,
    offset: jax.Array,
    depthwise: jax.Array,
    pointwise: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes `separable_conv(relu(x * multiplier + offset))`, and its sums for batch norm.

    It has a gradient, but no forward mode and no second derivative.

    Args:
      how: what `launch` gives.
      x: `[N, H, W, C]`, of one of `DTYPES`.
      multiplier: `[C]`.
      offset: `[C]`.
      depthwise: `[3, 3, 1, C]`.
      pointwise: `[1, 1, C, features]`.

    Returns:
      `[N, H, W, features]`; and the sums of it and of its square over the global batch and all
      positions, `[2, features]`, float32.
    """
    return _forward(how, x, multiplier, offset, depthwise, pointwise)[0]


def _forward(how: Launch, *operands: jax.Array) -> tuple[Any, Any]:
    def compute(x: jax.Array, *others: jax.Array, total: Callable) -> tuple[jax.Array, jax.Array]:
        y, sums = _kernels().forward(_rows_first(x), *others, how.step)
        return _images_first(y), total(sums)

    y, sums = how.on_each_device(compute, (True, *[False] * 4), 2)(*_narrow(*operands))
    return (y, sums), (*operands, y)


def _backward(how: Launch, saved: Any, gradients: Any) -> tuple[jax.Array, ...]:
    def compute(
        x: jax.Array, y: jax.Array, dy: jax.Array, *others: jax.Array, total: Callable
    ) -> tuple[jax.Array, ...]:
        dx, *rest = _kernels().backward(*map(_rows_first, (x, y, dy)), *others, how.step)
        return _images_first(dx), *map(total, rest)

    *operands, y = saved
    (x, *others), (dy, dsums) = _narrow(*operands), gradients
    run = how.on_each_device(compute, (*[True] * 3, *[False] * 5), 5)
    found = run(x, y, dy, dsums, *others)
    return tuple(
        gradient.reshape(operand.shape).astype(operand.dtype)
        for gradient, operand in zip(found, operands, strict=True)
    )


def _kernels() -> Any:
    # Only where it is needed: Pallas is experimental, and may change with the version of JAX.
    from xception_flax.ops import kernels

    return kernels


def _narrow(
    x: jax.Array,
    multiplier: jax.Array,
    offset: jax.Array,
    depthwise: jax.Array,
    pointwise: jax.Array,
) -> tuple[jax.Array, ...]:
    """The operands as the kernels take them."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    small = (a.astype(wide) for a in (multiplier, offset, depthwise[:, :, 0]))
    return x, *small, pointwise[0, 0].astype(x.dtype)


def _rows_first(x: jax.Array) -> jax.Array:
    """`[N, H, W, C]` to `[H, W, N, C]`.

    Between two kernels the transpositions cancel each other. The barrier keeps XLA from computing
    `x` once for the kernel and once more for whatever else reads it.
    """
    return lax.optimization_barrier(x).transpose(1, 2, 0, 3)


def _images_first(x: jax.Array) -> jax.Array:
    return x.transpose(2, 0, 1, 3)


fused_separable_conv.defvjp(_forward, _backward)
