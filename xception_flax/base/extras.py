"""Packages that only some uses need; the extras of `pyproject.toml` install them."""

import contextlib
import importlib.util
from collections.abc import Iterator

from xception_flax.base.errors import UserError


@contextlib.contextmanager
def needed(extra: str, purpose: str) -> Iterator[None]:
    """For imports inside the context: a missing package is an error that names its extra.

    Args:
      extra: the extra, such as 'keras'; or how else to install it, with a space in it.
      purpose: what needs the package, such as 'a weights file of Keras'.

    Raises:
      UserError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing((error.name or '').partition('.')[0], extra, purpose) from None


def check(package: str, extra: str, purpose: str) -> None:
    """Checks that a package is installed, without importing it; as `needed`.

    Raises:
      UserError: it is missing.
    """
    if not present(package):
        raise _missing(package, extra, purpose)


def present(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def _missing(package: str, extra: str, purpose: str) -> UserError:
    how = extra if ' ' in extra else f"pip install -e '.[{extra}]'"
    return UserError(f'{purpose} needs {package}: {how}')
