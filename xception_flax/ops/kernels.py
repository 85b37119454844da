"""Two kernels for TPU: batch norm's last step, ReLU, separable convolution; and their gradient.

XLA fuses nothing across two convolutions, so it writes what is between them to memory and reads it
back. Here a grid step takes a band of rows of some images, and what is between the parts stays on
the chip: the forward kernel reads its input once and writes its output once; the backward kernel
reads the input, the output and the output's gradient, computes the rest again, and writes the
input's gradient.

Arrays are `[H, W, N, C]`. A register holds 8 x 128 numbers of the last two axes, here of images and
channels, so that the neighbour of a pixel is another register and the nine shifts of the depthwise
convolution are nine addresses. In `[N, H, W, C]` they would move numbers inside of registers.

Two units of the chip limit each loop: the matrix unit (pointwise convolution) and the vector unit
(everything else). The compiler runs both at once if one loop gives work to both, and if registers
do not overflow: therefore loops over rows, tiles of 128 channels, and windows that slide.
`python -m experiments.benchmarks.tpu_schedule` prints the machine's cycles beside these limits.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # numbers in a register along the last axis
SUBLANES = 8  # along the axis before it
RESERVE = 4 * 2**20  # bytes of vector memory for the compiler, as for spilled registers

Window = list[list[Any]]  # three columns of three rows of `[images, channels]`


class Step(NamedTuple):
    """What a grid step takes, and where.

    Attributes:
      images: number of images, a divisor of N and a multiple of 8.
      rows: rows of a band; the last band may have less.
      memory: bytes of vector memory of a core; None for the interpreter.
    """

    images: int
    rows: int
    memory: int | None

    def options(
        self, name: str, x: jax.Array, features: int, passes: int, *semantics: Any
    ) -> dict[str, Any]:
        """Options of `pl.pallas_call`, for a kernel with an input `x`, `[H, W, N, C]`.

        Args:
          name: of the kernel; those of the shapes are added.
          x: the input.
          features: channels of the output.
          passes: how often the kernel reads or writes `x` and the output, and how often it
            computes a convolution or one of its gradients; for XLA's account of the program.
          *semantics: of the axes of the grid.
        """
        height, width, n, channels = x.shape
        lanes = sum(-(-c // LANES) * LANES for c in (channels, features))  # as memory is laid out
        estimate = pl.CostEstimate(
            flops=passes * 2 * x.size * (9 + features),
            bytes_accessed=passes * height * width * n * lanes * x.dtype.itemsize,
            transcendentals=0,
        )
        shapes = '_'.join(map(str, (n, height, width, channels, features)))
        options = {'name': f'{name}_{shapes}', 'cost_estimate': estimate}
        if self.memory is None:
            return {**options, 'interpret': pltpu.InterpretParams(detect_races=True)}
        params = pltpu.CompilerParams(
            dimension_semantics=semantics, vmem_limit_bytes=self.memory - RESERVE // 2
        )
        return {**options, 'compiler_params': params}


@functools.partial(jax.jit, static_argnames='step')  # traced once for all layers of one shape
def forward(
    x: jax.Array, multiplier: jax.Array, offset: jax.Array, depthwise: jax.Array,
    pointwise: jax.Array, step: Step,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The separable convolution of `relu(x * multiplier + offset)`, and its sums for batch norm.

    Args:
      x: `[H, W, N, C]`.
      multiplier: `[C]`, at least float32.
      offset: `[C]`, of the same type.
      depthwise: `[3, 3, C]`, of the same type.
      pointwise: `[C, F]`, of the type of `x`.
      step: what a grid step takes.

    Returns:
      `[H, W, N, F]`; and the sums of it and of its square over all positions, `[2, F]`.
    """
    height, width, n, channels = x.shape
    features, wide = pointwise.shape[1], depthwise.dtype
    bands, groups = -(-height // step.rows), n // step.images
    band = functools.partial(_band, height, width, step, lambda group, band: (band, group))
    y, sums = pl.pallas_call(
        functools.partial(_forward, height=height),
        grid=(groups, bands),
        in_specs=[band(channels), *map(_whole, [*_shapes(channels), pointwise.shape])],
        out_specs=[
            band(features)[0],
            pl.BlockSpec((1, 1, 2, SUBLANES, features), lambda group, band: (group, band, 0, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((height, width, n, features), x.dtype),
            jax.ShapeDtypeStruct((groups, bands, 2, SUBLANES, features), wide),
        ],
        scratch_shapes=[pltpu.VMEM((step.rows + 2, width + 2, step.images, channels), wide)],
        **step.options('separable_forward', x, features, 1, 'parallel', 'parallel'),
    )((x,) * len(band(channels)), multiplier[None], offset[None], depthwise, pointwise)
    return y, sums.sum((0, 1, 3))


def _forward(x: Any, multiplier: Any, offset: Any, depthwise: Any, pointwise: Any,
             y: Any, sums: Any, padded: Any, height: int) -> None:  # fmt: skip
    rows, width, images, features = y.shape
    _activate(x, multiplier, offset, padded, height, pl.program_id(1))
    sums[...] = jnp.zeros_like(sums)

    @pl.loop(0, rows)
    def _(row: Any) -> None:
        between = sum(
            padded[row + i, j : j + width] * depthwise[i, j] for i in range(3) for j in range(3)
        )
        between = between.astype(y.dtype).reshape(width * images, -1)
        product = jnp.dot(between, pointwise[...], preferred_element_type=sums.dtype)
        y[row] = product.reshape(width, images, features).astype(y.dtype)
        if height % rows:
            product = jnp.where(pl.program_id(1) * rows + row < height, product, 0)
        sums[0, 0, 0] += _sum(product)
        sums[0, 0, 1] += _sum(product * product)


@functools.partial(jax.jit, static_argnames='step')
def backward(
    x: jax.Array, y: jax.Array, dy: jax.Array, dsums: jax.Array, multiplier: jax.Array,
    offset: jax.Array, depthwise: jax.Array, pointwise: jax.Array, step: Step,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """The gradient of `forward`.

    Args:
      x: as for `forward`.
      y: the output of `forward`, `[H, W, N, F]`.
      dy: gradient of the output, `[H, W, N, F]`, without what comes through the sums.
      dsums: gradient of the sums, `[2, F]`.
      multiplier: as for `forward`.
      offset: as for `forward`.
      depthwise: as for `forward`.
      pointwise: as for `forward`.
      step: as for `forward`.

    Returns:
      The gradients of `x`, `multiplier`, `offset`, `depthwise` and `pointwise`.
    """
    height, width, n, channels = x.shape
    features, wide = pointwise.shape[1], depthwise.dtype
    bands, groups = -(-height // step.rows), n // step.images
    parts = 2 - groups % 2  # a chip of v4 or v5p has two cores, each with sums of its own
    groups //= parts

    def place(part: Any, group: Any, band: Any) -> tuple[Any, Any]:
        return band, part * groups + group

    def total(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape), lambda part, *_: (part, *[0] * len(shape)))

    band = functools.partial(_band, height, width, step, place)
    totals = (channels, features), (3, 3, SUBLANES, channels), (2, SUBLANES, channels)
    framed = step.rows + 2, width + 2, step.images, channels
    dx, dpointwise, ddepthwise, sums = pl.pallas_call(
        functools.partial(_backward, height=height),
        grid=(parts, groups, bands),
        in_specs=[
            band(channels), band(features), band(features),
            *map(_whole, [(2, features), *_shapes(channels), (features, channels)]),
        ],
        out_specs=[band(channels)[0], *(total(*shape) for shape in totals)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct((parts, *shape), wide) for shape in totals),
        ],
        scratch_shapes=[
            pltpu.VMEM(framed, wide),
            pltpu.VMEM((step.rows + 2, width, step.images, features), x.dtype),
            pltpu.VMEM(framed, x.dtype),
        ],
        **step.options(
            'separable_backward', x, features, 2, 'parallel', 'arbitrary', 'arbitrary'
        ),
    )(
        *((a,) * len(band(1)) for a in (x, y, dy)),
        dsums, multiplier[None], offset[None], depthwise, pointwise.T,
    )  # fmt: skip
    doffset, dmultiplier = sums.sum((0, 2))
    return dx, dmultiplier, doffset, ddepthwise.sum((0, 3)), dpointwise.sum(0)


def _backward(x: Any, y: Any, dy: Any, dsums: Any, multiplier: Any, offset: Any, depthwise: Any,
              pointwise_t: Any, dx: Any, dpointwise: Any, ddepthwise: Any, sums: Any,
              padded: Any, dproduct: Any, dbetween: Any, height: int) -> None:  # fmt: skip
    rows, width, images, channels = dx.shape
    features, wide = dproduct.shape[3], sums.dtype
    _activate(x, multiplier, offset, padded, height, pl.program_id(2))
    _frame(dbetween)

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        for total in (dpointwise, ddepthwise, sums):
            total[...] = jnp.zeros_like(total)

    def collect(row: Any, inside: Any, y: Any, dy: Any) -> None:
        """The gradient of the output, also through its sums."""
        for t in _tiles(features):
            through_sums = dsums[0, t] + 2 * dsums[1, t] * y[:, :, t].astype(wide)
            gradient = inside(dy[:, :, t].astype(wide) + through_sums)
            dproduct[row, :, :, t] = gradient.astype(dx.dtype)

    _each_row((y, dy), dproduct, height, pl.program_id(2), collect)

    def pointwise_gradient(first: Any, count: int) -> None:
        """Adds some rows to it; the depthwise output of a tile goes straight into the product."""
        gradient = dproduct[pl.ds(first + 1, count)].reshape(count * width * images, features)
        for t in _tiles(channels):
            taps = _taps(depthwise, t)
            between = [
                _weighted(window, taps).astype(dx.dtype)
                for row in range(count)
                for window in _windows(padded, first + row, t, wide)
            ]
            dpointwise[0, t] += lax.dot_general(
                jnp.concatenate(between), gradient, (((0,), (0,)), ((), ())),
                preferred_element_type=wide,
            )  # fmt: skip

    # The matrix unit takes 128 positions at once, of which two rows leave fewer unused.
    pl.loop(0, rows // 2)(lambda pair: pointwise_gradient(2 * pair, 2))
    if rows % 2:
        pointwise_gradient(rows - 1, 1)

    def product(row: Any, t: slice) -> None:
        """The gradient of the depthwise output in a row; row 0 is above the band."""
        gradient = dproduct[row].reshape(width * images, features)
        back = jnp.dot(gradient, pointwise_t[:, t], preferred_element_type=wide)
        dbetween[row, 1 : width + 1, :, t] = back.reshape(width, images, -1).astype(dx.dtype)

    def rest(row: Any, t: slice) -> None:
        """All other gradients in a row: of the input, the depthwise kernel, and batch norm."""
        taps = _taps(depthwise, t)
        flipped = [column[::-1] for column in taps[::-1]]
        zero = jnp.zeros((SUBLANES, taps[0][0].shape[-1]), wide)
        dtaps, moved, stretched = [[zero] * 3 for _ in range(3)], zero, zero
        windows = zip(_windows(padded, row, t, wide), _windows(dbetween, row, t, wide), strict=True)
        for column, (inputs, gradients) in enumerate(windows):
            for j in range(3):
                for i in range(3):
                    dtaps[j][i] += _sum(inputs[j][i] * gradients[1][1])
            active = inputs[1][1] > 0
            gradient = jnp.where(active, _weighted(gradients, flipped), 0)
            dx[row, column, :, t] = (gradient * multiplier[0, t]).astype(dx.dtype)
            moved += _sum(gradient)
            factor = x[0][row, column, :, t].astype(wide)
            if height % rows:  # what is not in the image may be anything
                factor = jnp.where(active, factor, 0)
            stretched += _sum(gradient * factor)
        for j in range(3):
            for i in range(3):
                ddepthwise[0, i, j, :, t] += dtaps[j][i]
        sums[0, 0, :, t] += moved
        sums[0, 1, :, t] += stretched

    # The rest is behind the product of the row below it, so that one loop has both.
    for t in _tiles(channels):
        product(0, t)
        product(1, t)

    @pl.loop(0, rows)
    def _(row: Any) -> None:
        for t in _tiles(channels):
            product(row + 2, t)
            rest(row, t)


def _activate(x: Any, multiplier: Any, offset: Any, padded: Any, height: int, band: Any) -> None:
    """Writes `relu(x * multiplier + offset)` into `padded`, in a frame of zeros."""
    width, channels = x[0].shape[1], x[0].shape[3]

    def write(row: Any, inside: Any, x: Any) -> None:
        for t in _tiles(channels):
            value = x[:, :, t].astype(padded.dtype) * multiplier[0, t] + offset[0, t]
            padded[row, 1 : width + 1, :, t] = inside(jnp.maximum(value, 0))

    _frame(padded)
    _each_row((x,), padded, height, band, write)


def _each_row(
    arrays: Sequence[Any], target: Any, height: int, band: Any, write: Callable[..., None]
) -> None:
    """Calls `write(row, inside, *rows)` for the rows of a band and their two neighbours.

    Args:
      arrays: of each array, the band, and the row above and below it if there is more than one.
      target: what `write` writes to: row 0 is above the band.
      height: rows of the image.
      band: number of the band.
      write: `row` is a row of the target, `rows` those of the arrays; `inside` replaces values by
        zero if the row is not in the image.
    """
    rows = arrays[0][0].shape[0]

    def inside(condition: Any) -> Callable[[Any], Any]:
        return lambda value: jnp.where(condition, value, 0)

    @pl.loop(0, rows)
    def _(row: Any) -> None:
        partial = height % rows
        check = inside(band * rows + row < height) if partial else lambda value: value
        write(row + 1, check, *(array[0].at[row] for array in arrays))

    if height <= rows:
        target[0] = target[rows + 1] = jnp.zeros_like(target[0])
        return
    write(0, inside(band > 0), *(array[1].at[0] for array in arrays))
    write(rows + 1, inside(band * rows + rows < height), *(array[2].at[0] for array in arrays))


def _frame(padded: Any) -> None:
    """Writes zeros to the left and to the right of all rows."""

    @pl.loop(0, padded.shape[0])
    def _(row: Any) -> None:
        for column in (0, padded.shape[1] - 1):
            padded[row, column] = jnp.zeros_like(padded[0, 0])


def _windows(padded: Any, row: Any, t: slice, wide: Any) -> Iterator[Window]:
    """The 3x3 neighbours of each pixel of a row; reads each pixel once."""
    columns: Window = []
    for column in range(padded.shape[1]):
        columns.append([padded[row + i, column, :, t].astype(wide) for i in range(3)])
        if column >= 2:
            yield columns[-3:]


def _taps(depthwise: Any, t: slice) -> Window:
    """The depthwise kernel as the window that it weighs, each element `[1, channels]`."""
    return [[depthwise[i, j, t][None] for i in range(3)] for j in range(3)]


def _weighted(window: Window, taps: Window) -> Any:
    """The sum of the elements of a window, each multiplied by its own tap."""
    return sum(window[j][i] * taps[j][i] for j in range(3) for i in range(3))


def _sum(values: jax.Array) -> jax.Array:
    """The sums over all but the last axis, left in the rows of a register: `[8, channels]`."""
    return values.reshape(-1, SUBLANES, values.shape[-1]).sum(0)


def _tiles(channels: int) -> list[slice]:
    """The channels, one register wide at a time."""
    return [slice(first, min(first + LANES, channels)) for first in range(0, channels, LANES)]


def _shapes(channels: int) -> list[tuple[int, ...]]:
    """The shapes of batch norm's factor and summand, and of the depthwise kernel."""
    return [(1, channels), (1, channels), (3, 3, channels)]


def _band(
    height: int, width: int, step: Step, place: Callable[..., tuple], channels: int
) -> tuple[pl.BlockSpec, ...]:
    """A band of rows of some images; and the rows above and below it, if there is more than one.

    Args:
      height: rows of the image.
      width: its columns.
      step: what a grid step takes.
      place: maps the indices of a grid step to the numbers of its band and its group of images.
      channels: channels of the array.
    """

    def rows(count: int, first: Callable[[Any], Any]) -> pl.BlockSpec:
        def index(*at: Any) -> tuple[Any, ...]:
            band, group = place(*at)
            return first(band), 0, group, 0

        return pl.BlockSpec((count, width, step.images, channels), index)

    whole = rows(step.rows, lambda band: band)
    if height <= step.rows:
        return (whole,)
    above = rows(1, lambda band: jnp.maximum(band * step.rows - 1, 0))
    below = rows(1, lambda band: jnp.minimum((band + 1) * step.rows, height - 1))
    return whole, above, below


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    """A small array, the same in each grid step."""
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def best_step(
    shape: Sequence[int], features: int, images: Sequence[int], itemsize: int, memory: int | None
) -> Step | None:
    """What a grid step takes: the largest part that vector memory has room for, or None.

    Args:
      shape: of the input, `[N, H, W, C]`.
      features: channels of the output.
      images: possible numbers of images, the best first.
      itemsize: bytes of an element.
      memory: bytes of vector memory of a core; None for the interpreter.
    """
    n, height, *_ = shape
    for bands in range(1, height // 4 + 2):
        rows = -(-height // bands)
        for count in images:
            needed = memory_needed(shape, features, count, rows, itemsize)
            if n % count == 0 and (memory is None or needed <= memory):
                return Step(count, rows, memory)
    return None


def memory_needed(
    shape: Sequence[int], features: int, images: int, rows: int, itemsize: int
) -> int:
    """Bytes of vector memory that a grid step of `backward` takes, the larger one."""
    _, height, width, channels = shape
    channels, features = (-(-c // LANES) * LANES for c in (channels, features))
    around = 2 * (height > rows)  # rows that are read, too
    row = width * images * itemsize
    # All that is read or written is there twice: one grid step computes, the next is copied.
    copied = 2 * row * (channels * (2 * rows + around) + 2 * features * (rows + around))
    kernels = 2 * channels * features * (itemsize + 4)
    kept = (rows + 2) * row * (features + channels + channels * 4 // itemsize) * (width + 2) / width
    return copied + kernels + int(kept) + RESERVE
