"""Settings of many runs: as text on the command line, and on top of a config file."""

import ast
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from xception_flax.config import reading
from xception_flax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Values by their paths, from 'PATH=VALUE'.

    A value is a number, a tuple, a truth value, or else the text itself.

    Raises:
      UserError: one has no '='.
    """
    return {path: _value(text) for path, text in map(_split, texts)}


def axes(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Several values for each path, from 'PATH=VALUE,VALUE,...'.

    Raises:
      UserError: one has no '='.
    """
    found = {}
    for path, text in map(_split, texts):
        values = _value(f'[{text}]')
        several = isinstance(values, list)
        found[path] = values if several else [_value(part) for part in text.split(',')]
    return found


def read(file: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a file, given from the project's root, with some settings changed.

    Raises:
      UserError: there is no such file or setting, or a value is of another type.
    """
    config = reading.read_file(str(ROOT / file))
    reading.check_keys(list(overrides))
    for path, value in overrides.items():
        try:
            config.update_from_flattened_dict({path: value})
        except (TypeError, ValueError) as error:
            raise UserError(f'config.{path} cannot be {value!r}: {error}') from error
    reading.override_units(config, list(overrides))
    return config


def _split(text: str) -> tuple[str, str]:
    path, equals, value = text.partition('=')
    if not equals:
        raise UserError(f'{text!r} is no PATH=VALUE')
    return path, value


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
