"""Reads a config from a file in `configs/`, the command line, or a run's `config.json`."""

import ast
import difflib
import json
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from xception_flax.base.errors import UserError, nearest
from xception_flax.config import schema

# Values of settings that had another name in older runs.
RENAMED = {('augment.crop', 'inception'): 'random'}
STORED = str(pathlib.Path(__file__).with_name('stored.py'))  # for `--config=RUN/config.json`


def define_flag() -> None:
    """Defines `--config=FILE` and with it `--config.SETTING=VALUE`."""
    config_flags.DEFINE_config_file(
        'config', None, 'Config file, such as configs/digits.py. --config.SETTING=VALUE overrides.'
    )


def parse_flags(argv: Sequence[str], arguments: str = '', changes: bool = False) -> list[str]:
    """Parses the command line, for `app.run(flags_parser=...)`: a mistake ends it in one line.

    Args:
      argv: the command line.
      arguments: names of what the program takes besides flags, such as 'SOURCE TARGET'; a last one
        that ends in '...' stands for one or more, all in brackets are optional.
      changes: whether settings may be given without --config=FILE, to change those of a network.

    Returns:
      The program's name and the arguments that are not flags.
    """
    argv = ['--help' if arg == '-h' else arg for arg in argv]
    try:
        keys = [m[1] for arg in argv if (m := re.match(r'--?(?:no)?config\.([^=]+)', arg))]
        files = [m[1] for m in re.finditer(r'(?:^|\0)--?config[=\0]([^\0]*)', '\0'.join(argv))]
        for file in files:
            read_file(file)
        check_keys(keys)
        if keys and not files and not changes:
            raise UserError(f'config.{keys[0]} is set, but there is no --config=FILE to change')
        if keys and not files:
            argv.insert(1, f'--config={STORED}')
        for file in filter(lambda file: file.endswith('.json'), files):
            spelled = (file, f'--config={file}', f'-config={file}')
            argv = [
                arg.replace(file, f'{STORED}:{file}') if arg in spelled else arg for arg in argv
            ]
        rest = flags.FLAGS(argv)
        _check_arguments(rest[1:], arguments)
        if flags.FLAGS['config'].present:
            override_units(flags.FLAGS.config, keys)
        return rest
    except SystemExit:  # absl has printed the help, and calls that a failure
        sys.exit(0)
    except (flags.Error, UserError) as error:
        sys.exit(f'error: {_one_line(error)}')


def _check_arguments(given: Sequence[str], arguments: str) -> None:
    names = arguments.strip('[]').split()
    optional = arguments.startswith('[') and not given
    if len(given) < len(names) and not optional:
        raise UserError(f'{names[len(given)].rstrip(".")} is missing; see --help')
    if len(given) > len(names) and not arguments.endswith('...'):
        raise UserError(f'{given[len(names)]!r} is not understood; see --help')


def read_file(path: str | os.PathLike[str]) -> ConfigDict:
    """Runs `get_config()` of a config file, or reads the `config.json` of a run.

    Raises:
      UserError: there is no such file, or it fails; says at which line.
    """
    stored = str(path).endswith('.json')
    if not (stored and '://' in os.fspath(path)) and not os.path.isfile(path):
        raise UserError(f'there is no config file {str(path)!r}{_nearby(path)}')
    if stored:
        return from_json(path)
    try:
        config = runpy.run_path(str(path))['get_config']()
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f'{path}:{lines[-1]}' if lines else str(path)
        explanation = lines and _mistaken_setting(error, pathlib.Path(path), lines[-1] or 0)
        raise UserError(f'{where}: {explanation or _explain(error)}') from error
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


def command_line() -> tuple[ConfigDict | None, dict[str, Any]]:
    """The config of `--config=FILE`, None without one; and the settings given besides, by path."""
    flag = flags.FLAGS['config']
    if not flag.present:
        return None, {}
    alone = config_flags.get_config_filename(flag) == STORED
    return None if alone else flags.FLAGS.config, config_flags.get_override_values(flag)


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


def from_json(path: str | os.PathLike[str]) -> ConfigDict:
    """Reads a workdir's `config.json`; settings that it lacks have their defaults.

    Raises:
      UserError: there is no such file, its bucket cannot be read, or it is no config of this
        version.
    """
    from xception_flax.base import paths  # slow to import

    path = paths.path(path)
    try:
        with paths.errors(path):
            text = path.read_text()
        stored = json.loads(text)
    except FileNotFoundError:
        raise UserError(f'{path} is missing: {path.parent} holds no run') from None
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}') from error
    config = schema.default()
    try:
        values = dict(_flatten(stored))
        check_keys(list(values))
        for setting, value in values.items():
            _set(config, setting, RENAMED.get((setting, str(value)), value))
    except (AttributeError, UserError) as error:  # not even an object of settings
        raise UserError(f'{path}: {_explain(error)}') from error
    return config


def set_value(config: ConfigDict, path: str, value: Any) -> None:
    """Sets one setting.

    Raises:
      UserError: there is no such setting, or the value is of another type.
    """
    check_keys([path])
    _set(config, path, value)


def _set(config: ConfigDict, path: str, value: Any) -> None:
    try:
        config.update_from_flattened_dict({path: value})
    except (TypeError, ValueError) as error:
        kind = _type(path).__name__
        raise UserError(f'config.{path} takes {kind}, not {value!r}') from error


def _flatten(stored: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """The values by path, such as 'optimizer.momentum'; lists as tuples."""
    for key, value in stored.items():
        if isinstance(value, dict):
            yield from _flatten(value, f'{prefix}{key}.')
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


def _type(path: str) -> type:
    """The type of a setting."""
    section, _, key = path.rpartition('.')
    default = schema.default()
    return (default[section] if section else default).get_type(key)


def _mistaken_setting(error: Exception, path: pathlib.Path, line: int) -> str:
    """What is wrong with a setting that a line of a config file names; '' if it names none.

    ConfigDict reports all fields of a section; the line itself says which one was meant.
    """
    known = schema.paths(schema.default())
    sections = {part.rpartition('.')[0] for part in known}
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.Assign) or not node.lineno <= line <= (node.end_lineno or line):
            continue
        named = ast.unparse(node.targets[0]).partition('.')[2]
        meant = [known_path for known_path in known if f'.{known_path}'.endswith(f'.{named}')]
        unknown = named and not meant and named not in sections
        if isinstance(error, AttributeError | KeyError) and unknown:
            return f'there is no setting {named!r}{_nearest_path(named, known)}'
        if isinstance(error, TypeError) and meant:
            return f'{named} takes {_type(meant[0]).__name__}, not {ast.unparse(node.value)}'
    return ''


def _explain(error: Exception) -> str:
    return _one_line(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'


def _nearest_path(key: str, known: Sequence[str]) -> str:
    """The setting that `key` most resembles, by its whole path or else by its last part."""
    names = {path.partition('.')[0]: path.partition('.')[0] for path in known}
    last = {path.rpartition('.')[2]: path for path in reversed(known)}  # the first of a name wins
    names |= last | {path: path for path in known}
    for word in (key, key.rpartition('.')[2]):
        if match := difflib.get_close_matches(word, names, n=1):
            return f'; did you mean config.{names[match[0]]}?'
    return '; every setting is in xception_flax/config/schema.py'


def _nearby(path: str | os.PathLike[str]) -> str:
    files = [str(file) for file in pathlib.Path(path).parent.glob('*.py')]
    return nearest(str(path), files) if files else ''


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
