"""Xception in JAX: the networks, their training and their comparison.

The public names are imported when first used, so `import xception_flax` itself is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xception_flax.base.errors import UserError
    from xception_flax.models import create_model
    from xception_flax.weights import Trained, load

__version__ = '0.2.0'
__all__ = ['Trained', 'UserError', 'create_model', 'load']

_MODULES = {
    'Trained': 'xception_flax.weights',
    'UserError': 'xception_flax.base.errors',
    'create_model': 'xception_flax.models',
    'load': 'xception_flax.weights',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
