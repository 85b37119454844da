"""Which lowering of an operation is compiled: that of the kind of device, or the reference."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

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
