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
        package = (error.name or '').partition('.')[0]
        how = extra if ' ' in extra else f"pip install -e '.[{extra}]'"
        raise UserError(f'{purpose} needs {package}: {how}') from None


def present(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None
