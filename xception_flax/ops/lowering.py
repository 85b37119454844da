"""Which lowering of an operation is compiled: that of the kind of device, or the reference."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

CHOICES = ('auto', 'reference')

_choice = contextvars.ContextVar('lowering', default=('auto', ''))


@contextlib.contextmanager
def lowerings(choice: str, platform: str = '') -> Iterator[None]:
    """Sets what is traced meanwhile; a function that JAX has traced before stays as it is.

    Args:
      choice: 'auto' for the quickest lowering on each kind of device; 'reference' for XLA's own
        operations everywhere, which is also what converters understand.
      platform: JAX's name of the only kind of device that it will be compiled for ('cpu', 'tpu',
        ...), which halves the time of tracing; '' if that is not known.
    """
    token = _choice.set((choice, platform))
    try:
        yield
    finally:
        _choice.reset(token)


def reference_only() -> bool:
    """Whether all is to be XLA's own."""
    return _choice.get()[0] == 'reference'


def by_device(*operands: Any, reference: Callable, **lowerings: Callable) -> Any:
    """Calls the lowering for the kind of device ('cpu', 'tpu', ...), else the reference."""
    choice, platform = _choice.get()
    if choice == 'reference':
        return reference(*operands)
    if platform:
        return lowerings.get(platform, reference)(*operands)
    return lax.platform_dependent(*operands, default=reference, **lowerings)


# By default XLA on CPU gives convolutions to YNNPACK, where the second of Xception takes 63 ms for
# four pictures; in Eigen, which then has to have the matrix products, too, it is 14 ms.
FORWARD_OPTIONS = {'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''}}


@functools.cache
def forward_options(platform: str) -> dict[str, str]:
    """XLA's options for a program without gradients, for `jax.jit(..., compiler_options=...)`.

    Args:
      platform: JAX's name of the kind of device, which is that of its default backend.
    """
    options = FORWARD_OPTIONS.get(platform, {})
    if not options:
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # they are experimental: another version may know none
        return {}
    return options
