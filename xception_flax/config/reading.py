"""Reads a config from a file in `configs/`, the command line, or a run's `config.json`."""

import difflib
import json
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from xception_flax.config import schema
from xception_flax.runtime.errors import UserError, nearest


def define_flag() -> None:
    """Defines `--config=FILE` and with it `--config.SETTING=VALUE`."""
    config_flags.DEFINE_config_file(
        'config', None, 'Config file, such as configs/digits.py. --config.SETTING=VALUE overrides.'
    )


def parse_flags(argv: Sequence[str], arguments: str = '') -> list[str]:
    """Parses the command line, for `app.run(flags_parser=...)`: a mistake ends it in one line.

    Args:
      argv: the command line.
      arguments: names of what the program takes besides flags, such as 'SOURCE TARGET'; a last one
        that ends in '...' stands for one or more.

    Returns:
      The program's name and the arguments that are no flags.
    """
    try:
        keys = [m[1] for arg in argv if (m := re.match(r'--?(?:no)?config\.([^=]+)', arg))]
        files = [m[1] for m in re.finditer(r'(?:^|\0)--?config[=\0]([^\0]*)', '\0'.join(argv))]
        for file in files:
            read_file(file)
        check_keys(keys)
        if keys and not files:
            raise UserError(f'config.{keys[0]} is set, but there is no --config=FILE to change')
        rest = flags.FLAGS(list(argv))
        names = arguments.split()
        if len(rest) <= len(names):
            raise UserError(f'{names[len(rest) - 1].rstrip(".")} is missing; see --help')
        if len(rest) > len(names) + 1 and not arguments.endswith('...'):
            raise UserError(f'{rest[len(names) + 1]!r} is not understood; see --help')
        if flags.FLAGS['config'].present:
            override_units(flags.FLAGS.config, keys)
        return rest
    except (flags.Error, UserError) as error:
        sys.exit(f'error: {_one_line(error)}')


def read_file(path: str | os.PathLike[str]) -> ConfigDict:
    """Runs `get_config()` of a config file.

    Raises:
      UserError: there is no such file, or it fails; says at which line.
    """
    if not os.path.isfile(path):
        raise UserError(f'there is no config file {str(path)!r}{_nearby(path)}')
    try:
        config = runpy.run_path(str(path))['get_config']()
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f'{path}:{lines[-1]}' if lines else str(path)
        raise UserError(f'{where}: {_explain(error)}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(f'{path}: get_config() must return the config')
    return config


def start_from(name: str, file: str) -> ConfigDict:
    """The config of another file, for `get_config()` to change what differs.

    Args:
      name: the other file, as seen from the folder of `file`.
      file: the file that starts from it: `__file__`.

    Raises:
      UserError: there is no such file, or it fails.
    """
    return read_file(os.path.join(os.path.dirname(file), name))


def check_keys(keys: Sequence[str]) -> None:
    """Checks that each key is a path in the schema.

    Raises:
      UserError: one is not; names the nearest that is.
    """
    known = schema.paths(schema.default())
    for key in keys:
        if key not in known:
            raise UserError(f'there is no setting config.{key}{_nearest_path(key, known)}')


def override_units(config: ConfigDict, keys: Sequence[str]) -> None:
    """Unsets the other units of each duration among `keys`, which the command line has set."""
    known = schema.paths(config)
    for key in keys:
        stem, _, unit = key.rpartition('_')
        if unit in schema.UNITS:
            for sibling in (f'{stem}_{other}' for other in schema.UNITS):
                if sibling in known and sibling not in keys:
                    config.update_from_flattened_dict({sibling: None})


def to_json(config: ConfigDict) -> str:
    """The config as JSON, as `config.json` in a workdir holds it."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads a workdir's `config.json`; settings that it lacks have their defaults.

    Raises:
      UserError: there is no such file, or it is no config of this version.
    """
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f'{path} is missing: {path.parent} holds no run') from None
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}') from error
    config = schema.default()
    try:
        _fill(config, stored)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f'{path}: {_explain(error)}') from error
    return config


def _fill(config: ConfigDict, stored: dict[str, Any]) -> None:
    for key, value in stored.items():
        if isinstance(value, dict):
            _fill(config[key], value)
        else:
            config[key] = tuple(value) if isinstance(value, list) else value


def _explain(error: Exception) -> str:
    """What a failing config file did, in one line; ConfigDict's own words name all its fields."""
    known = schema.paths(schema.default())
    missing = re.search(r'Key "(\w+)', str(error)) or re.search(r'[\'"](\w+)', str(error))
    if isinstance(error, AttributeError | KeyError) and missing:
        return f'there is no setting {missing[1]!r}{_nearest_path(missing[1], known)}'
    cast = re.search(
        r"field '(\w+)'.*?\. (.*) is of .*<class '(\w+)'> and .*<class '(\w+)'>", str(error)
    )
    if isinstance(error, TypeError) and cast:
        return f'{cast[1]} takes {cast[4]}, not {cast[2]} ({cast[3]})'
    return _one_line(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'


def _nearest_path(key: str, known: Sequence[str]) -> str:
    """The setting that `key` most resembles, by its whole path or else by its last part."""
    names = {path.partition('.')[0]: path.partition('.')[0] for path in known}
    names |= {path.rpartition('.')[2]: path for path in known} | {path: path for path in known}
    for word in (key, key.rpartition('.')[2]):
        if match := difflib.get_close_matches(word, names, n=1):
            return f'; did you mean config.{names[match[0]]}?'
    return '; every setting is in xception_flax/config/schema.py'


def _nearby(path: str | os.PathLike[str]) -> str:
    files = [str(file) for file in pathlib.Path(path).parent.glob('*.py')]
    return nearest(str(path), files) if files else ''


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
