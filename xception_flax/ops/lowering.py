"""Chooses the implementation of an operation: the one for the backend, or the reference."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding

CHOICES = ('auto', 'reference', 'pallas')

_choice: contextvars.ContextVar[tuple[str, str, NamedSharding | None]] = contextvars.ContextVar(
    'lowering', default=('auto', '', None)
)


@contextlib.contextmanager
def lowerings(
    choice: str, platform: str = '', batch: NamedSharding | None = None
) -> Iterator[None]:
    """Chooses the implementations in the context; functions that are already traced keep theirs.

    Args:
      choice: 'auto' for the fastest implementation on each backend; 'reference' for XLA's own
        operations everywhere, which converters understand, too.
      platform: the only backend to compile for, as JAX names it ('cpu', 'tpu', ...), which halves
        the time of tracing; '' if unknown.
      batch: how batches are sharded, if that is known; see `no_copies`.
    """
    token = _choice.set((choice, platform, batch))
    try:
        yield
    finally:
        _choice.reset(token)


def reference_only() -> bool:
    """Whether all operations use their reference implementation."""
    return _choice.get()[0] == 'reference'


def current() -> tuple[str, str, NamedSharding | None]:
    """The arguments of `lowerings`: choice, platform and how batches are sharded."""
    return _choice.get()


def by_device(*operands: Any, reference: Callable, **lowerings: Callable) -> Any:
    """Calls the implementation for the backend ('cpu', 'tpu', ...), else the reference."""
    choice, platform, _ = _choice.get()
    if choice == 'reference':
        return reference(*operands)
    if platform:
        return lowerings.get(platform, reference)(*operands)
    return lax.platform_dependent(*operands, default=reference, **lowerings)


def no_copies() -> bool:
    """Whether it is known that no two devices hold the same part of a batch.

    Where they do, XLA's partitioner (seen on CPU, jax 0.10.2 and 0.12.0.1) sums the kernel gradient
    of a grouped convolution over the copies, too.
    """
    batch = _choice.get()[2]
    if batch is None:
        mesh = jax.sharding.get_abstract_mesh()
        return jax.device_count() == 1 or (not mesh.empty and mesh.are_all_axes_manual)
    axes = batch.spec[0] if batch.spec else ()
    return {axes} == {*batch.mesh.axis_names} or axes == batch.mesh.axis_names


def as_batch(x: jax.Array) -> jax.Array:
    """`x`, `[N, ...]`, and its gradient, sharded as batches are, if that is known."""
    batch = _choice.get()[2]
    return x if batch is None else lax.with_sharding_constraint(x, batch)


# By default XLA on CPU runs convolutions in YNNPACK, where Xception's second one takes 63 ms for
# four images; in Eigen it takes 14 ms. This option moves matrix products to Eigen, too.
FORWARD_OPTIONS = {'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''}}


@functools.cache
def forward_options(platform: str) -> dict[str, str]:
    """Options of XLA for programs without gradients: `jax.jit(..., compiler_options=...)`.

    Args:
      platform: the default backend, as JAX names it.
    """
    options = FORWARD_OPTIONS.get(platform, {})
    if not options:
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # experimental: another version may not have them
        return {}
    return options
