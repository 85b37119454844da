"""Compares the kernels with XLA's own operations on the device, and keeps the faster right one."""

import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_flax.base import paths, processes
from xception_flax.ops import fused
from xception_flax.ops.lowering import lowerings
from xception_flax.ops.separable import separable_conv

FILE = 'kernels.json'  # beside the compiled programs
SOURCES = pathlib.Path(__file__).parent
VARIABLES = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # options of the compiler

# How far both forms may be apart, in units of a result's root mean square. Both round to bfloat16,
# of 8 bits: TPUs round operands of products so in float32, too. Each form rounds about five times,
# by 2^-9 at most: this makes 2^-8 together. The largest of 10^8 such errors is six times as large;
# by it a large value may also be wrong. A value from a wrong place is wrong by about 1.
MEAN = 4 * 2.0**-8  # root mean square of the errors
LARGEST = 32 * 2.0**-8  # also in units of the value, if that is large
RESULTS = (
    'output', 'sum of the output', 'sum of the squared output', 'gradient of the input',
    "gradient of batch norm's factor", "gradient of batch norm's summand",
    'gradient of the depthwise kernel', 'gradient of the pointwise kernel',
)  # fmt: skip

CALLS, TRIES = 4, 5  # of a measurement of time: calls without a pause, and how often

Form = Callable[..., tuple[jax.Array, jax.Array]]  # as `fused_separable_conv`, without `how`


class Verdict(NamedTuple):
    """The result of a comparison.

    Attributes:
      against: what speaks against the kernels; '' if they are right and faster.
      kernels: seconds that they take; 0 if that was not measured.
      plain: seconds that XLA's own operations take, likewise.
    """

    against: str
    kernels: float = 0.0
    plain: float = 0.0


def choose(
    trace: Callable[[], Any], batch: NamedSharding, say: Callable[[str], None]
) -> dict[fused.Layer, Verdict]:
    """Decides for which layers of a network `launch` gives kernels by 'auto'.

    It does nothing except on TPUs of this machine. What was compared before is read from `FILE`.

    Args:
      trace: traces the network, without computing it.
      batch: how batches are sharded.
      say: prints a line.
    """
    device = _device(batch)
    if device is None:
        return {}
    with lowerings('auto', 'tpu', batch), fused.collected() as layers:
        trace()
    if not layers:
        return {}
    stored, keys = _stored(), {layer: _key(layer, device) for layer in layers}
    known = {layer: _verdict(stored.get(key)) for layer, key in keys.items()}
    unknown = [layer for layer, verdict in known.items() if verdict is None]
    for number, layer in enumerate(unknown, 1):
        say(f"comparing kernels with XLA's own operations, {number} of {len(unknown)}")
        try:
            known[layer] = verdict = compare(layer, layers[layer], device)
        except Exception as error:  # of XLA's own operations; in the network they may run
            known[layer] = Verdict(f'there was no comparison ({_in_one_line(error)})')
        else:
            _store(keys[layer], verdict)
    verdicts = _agreed({layer: verdict for layer, verdict in known.items() if verdict})
    for layer, verdict in verdicts.items():
        (fused.rejected.add if verdict.against else fused.rejected.discard)(layer)
    say(_summary(verdicts))
    return verdicts


def compare(layer: fused.Layer, step: Any, device: jax.Device) -> Verdict:
    """Compares the results and the times of both forms of a layer, with their gradients.

    Args:
      layer: the layer.
      step: what a grid step of the kernels takes, a `kernels.Step`.
      device: where they run.
    """
    alone = Mesh(np.array([device]), ('data',), axis_types=(AxisType.Auto,))
    one_device = NamedSharding(alone, PartitionSpec('data'))

    def kernels(*operands: jax.Array) -> tuple[jax.Array, jax.Array]:
        return fused.fused_separable_conv(fused.Launch(step, None), *operands)

    with jax.default_device(device), lowerings('auto', device.platform, one_device):
        arguments = jax.jit(_arguments, static_argnums=0)(layer)
        theirs = _compiled(plain, arguments, one_device)
        expected = jax.block_until_ready(theirs())
        other = _seconds(theirs)
        del theirs  # with its operands, which may be large
        try:
            ours = _compiled(kernels, arguments, one_device)
            del arguments
            found = jax.block_until_ready(ours())
            if wrong := _wrong(jax.device_get(jax.jit(_errors)(found, expected))):
                return Verdict(wrong)
            del expected, found
            seconds = _seconds(ours)
        except Exception as error:  # of the compiler or of the device, of many types
            return Verdict(f'the kernel fails ({_in_one_line(error)})')
    slower = f'{seconds / other:.2f} times as fast as the kernels' if other <= seconds else ''
    return Verdict(slower, seconds, other)


def _device(batch: NamedSharding) -> jax.Device | None:
    """The first TPU of this process; None without one, as for a slice that is only described."""
    ours = jax.local_devices()
    return next((d for d in batch.mesh.devices.flat if d.platform == 'tpu' and d in ours), None)


def _compiled(
    form: Form, arguments: Any, sharding: NamedSharding
) -> Callable[[], tuple[jax.Array, ...]]:
    """A program that computes `RESULTS` from `_arguments`.

    They lie in memory in the order that the program takes best, as they do inside of a network, so
    that neither form begins or ends with copies.
    """

    def compute(operands: Any, gradients: Any) -> tuple[jax.Array, ...]:
        (y, sums), pull = jax.vjp(form, *operands)
        return y, *sums, *pull(gradients)

    # With a device: JAX forgets the order of an array that may move. Callbacks of the interpreter,
    # on a CPU, know one order only.
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    best = Format(Layout.AUTO if jax.default_backend() == 'tpu' else None, whole)
    jitted = jax.jit(compute, in_shardings=best, out_shardings=best)
    compiled = jitted.lower(*jax.eval_shape(lambda: arguments)).compile()
    placed = jax.device_put(arguments, compiled.input_formats[0])
    return lambda: compiled(*placed)


def _arguments(layer: fused.Layer) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Random operands and gradients of the two results, of ordinary sizes.

    Batch norm's factors are powers of two: the product is then exact, and rounding does not decide
    where ReLU is zero.
    """
    (n, height, width, channels), features, dtype = layer
    keys = iter(jax.random.split(jax.random.key(0), 7))

    def normal(*shape: int, kind: Any = jnp.float32, scale: float = 1) -> jax.Array:
        return jax.random.normal(next(keys), shape, kind) * jnp.asarray(scale, kind)

    operands = (
        normal(n, height, width, channels, kind=dtype),
        jax.random.choice(next(keys), jnp.array([-1, 0.5, 1, 2], jnp.float32), (channels,)),
        normal(channels),
        normal(3, 3, 1, channels, scale=1 / 3),
        normal(1, 1, channels, features, scale=channels**-0.5),
    )
    # By this scale the sums contribute to the gradients of the kernels as much as the output does.
    dsums = normal(2, features, scale=(n * height * width) ** -0.5)
    return operands, (normal(n, height, width, features, kind=dtype), dsums)


def plain(
    x: jax.Array,
    multiplier: jax.Array,
    offset: jax.Array,
    depthwise: jax.Array,
    pointwise: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`fused_separable_conv` in XLA's own operations."""
    active = jax.nn.relu((x * multiplier + offset).astype(x.dtype))
    y = separable_conv(active, depthwise.astype(x.dtype), pointwise.astype(x.dtype))
    wide = y.astype(multiplier.dtype)
    return y, jnp.stack([wide.sum((0, 1, 2)), jnp.square(wide).sum((0, 1, 2))])


def _errors(found: tuple[jax.Array, ...], expected: tuple[jax.Array, ...]) -> jax.Array:
    """Of each result the root mean square and the largest error, `[RESULTS, 2]`."""

    def error(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        theirs = theirs.astype(jnp.float32)
        size = jnp.sqrt(jnp.mean(jnp.square(theirs)))
        off = jnp.abs(ours.astype(jnp.float32) - theirs)
        return jnp.stack(
            [jnp.sqrt(jnp.mean(jnp.square(off))) / size, jnp.max(off / (size + jnp.abs(theirs)))]
        )

    return jnp.stack([error(*pair) for pair in zip(found, expected, strict=True)])


def _wrong(errors: np.ndarray) -> str:
    """The first result that is wrong, and by how much; '' if all are right."""
    for name, (mean, largest) in zip(RESULTS, errors, strict=True):
        if not math.isfinite(largest):
            return f"the kernel's {name} is not finite"
        if mean > MEAN:
            return f"the kernel's {name} is wrong by {mean:.2g}"
        if largest > LARGEST:
            return f"the kernel's {name} is wrong by {largest:.2g} in places"
    return ''


def _seconds(run: Callable[[], Any]) -> float:
    """The time of a call, the shortest of some measurements."""

    def measured() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            result = run()
        jax.block_until_ready(result)
        return (time.perf_counter() - began) / CALLS

    return min(measured() for _ in range(TRIES))


def _agreed(verdicts: dict[fused.Layer, Verdict]) -> dict[fused.Layer, Verdict]:
    """The verdicts of all processes, whose programs must not differ: one is enough to reject."""
    ours = np.array([bool(verdict.against) for verdict in verdicts.values()], np.uint32)
    rejections = processes.gather(ours).sum(0).tolist()
    return {
        layer: verdict._replace(against='another process rejects the kernel')
        if count and not verdict.against
        else verdict
        for (layer, verdict), count in zip(verdicts.items(), rejections, strict=True)
    }


def _summary(verdicts: dict[fused.Layer, Verdict]) -> str:
    """What runs, and why, in one line."""
    chosen = [verdict for verdict in verdicts.values() if not verdict.against]
    others = [(layer, verdict.against) for layer, verdict in verdicts.items() if verdict.against]
    parts = []
    if chosen:
        ratio = sum(v.plain for v in chosen) / sum(v.kernels for v in chosen)
        parts.append(
            f"kernels for {len(chosen)} of {len(verdicts)} layers' shapes: {ratio:.1f} times as "
            "fast as XLA's own operations"
        )
    if others:
        layer, reason = others[0]
        more = f' (and for {len(others) - 1} more)' if len(others) > 1 else ''
        parts.append(f"XLA's own operations for {layer}: {reason}{more}")
    return '; '.join(parts)


def _in_one_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def _key(layer: fused.Layer, device: jax.Device) -> str:
    """All that a verdict depends on."""
    digest = hashlib.sha256()
    for file in sorted(SOURCES.glob('*.py')):
        digest.update(file.read_bytes())
    for name in VARIABLES:
        digest.update(f'{name}={os.environ.get(name, "")}\n'.encode())
    runtime = ' '.join(device.client.platform_version.split())  # on a TPU, the build of libtpu
    versions = f'jax {jax.__version__}', f'jaxlib {jaxlib.__version__}', runtime
    parts = device.device_kind, *versions, digest.hexdigest()[:16], str(layer), layer.dtype
    return ', '.join(parts)


def _folder() -> str | None:
    """The folder of compiled programs, or None if they are not kept."""
    config: Any = jax.config
    return config.jax_compilation_cache_dir


def _file() -> paths.Path | None:
    return paths.path(folder) / FILE if (folder := _folder()) else None


def _stored() -> dict[str, Any]:
    """The content of the file; none if it cannot be read."""
    try:
        if (file := _file()) is None:
            return {}
        with paths.errors(file):
            content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _verdict(entry: Any) -> Verdict | None:
    """The verdict of an entry of the file, or None if it is none."""
    try:
        verdict = Verdict(str(entry['against']), float(entry['kernels']), float(entry['plain']))
    except (KeyError, TypeError, ValueError):
        return None
    return verdict if verdict.against or verdict.kernels > 0 else None


def _store(key: str, verdict: Verdict) -> None:
    """Adds a verdict to the file; where that cannot be written, the next start compares again."""
    try:
        if (file := _file()) is None:
            return
        with paths.errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        content = {**_stored(), key: verdict._asdict()}
        paths.write(file, json.dumps(content, indent=1))
    except (OSError, ValueError):
        pass
