"""Xception in JAX: the networks, their training and their comparison.

The public names are imported when first used, so that `import xception_flax` itself is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xception_flax.inference import predict, preprocess
    from xception_flax.models import create_model
    from xception_flax.pretrained import load_pretrained, save_pretrained
    from xception_flax.runtime.checkpoints import load_checkpoint
    from xception_flax.runtime.errors import UserError

__version__ = '0.1.0'
__all__ = [
    'UserError', 'create_model', 'load_checkpoint', 'load_pretrained', 'predict', 'preprocess',
    'save_pretrained',
]  # fmt: skip

_HOMES = {
    'UserError': 'xception_flax.runtime.errors',
    'create_model': 'xception_flax.models',
    'load_checkpoint': 'xception_flax.runtime.checkpoints',
    'load_pretrained': 'xception_flax.pretrained',
    'predict': 'xception_flax.inference',  # not the program xception_flax/predict.py
    'preprocess': 'xception_flax.inference',
    'save_pretrained': 'xception_flax.pretrained',
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
