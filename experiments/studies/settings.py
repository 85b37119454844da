"""Settings of many runs: read from the command line, and applied to a config file."""

import ast
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.config import reading

ROOT = pathlib.Path(__file__).parents[2]


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Reads 'PATH=VALUE' texts: the values by path.

    A value is a number, a tuple, True or False, or else the text itself.

    Raises:
      UserError: a text has no '='.
    """
    return {path: _value(text) for path, text in map(_pair, texts)}


def axes(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Reads 'PATH=VALUE,VALUE,...' texts: the lists of values by path.

    Raises:
      UserError: a text has no '='.
    """
    found = {}
    for path, text in map(_pair, texts):
        values = _value(f'[{text}]')
        several = isinstance(values, list)
        found[path] = values if several else [_value(part) for part in text.split(',')]
    return found


def read(file: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """Reads a config file and changes some settings.

    Args:
      file: its path, relative to the root of the project.
      overrides: values to set, by path.

    Raises:
      UserError: there is no such file or setting, or a value is of another type.
    """
    config = reading.read_file(str(ROOT / file))
    for path, value in overrides.items():
        reading.set_value(config, path, value)
    reading.override_units(config, list(overrides))
    return config


def _pair(text: str) -> tuple[str, str]:
    path, equals, value = text.partition('=')
    if not equals:
        raise UserError(f'{text!r} is not PATH=VALUE')
    return path, value


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
