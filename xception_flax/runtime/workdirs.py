"""A run's folder: claimed by one program at a time, and by one run for ever."""

import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import filelock
import jax
import numpy as np
from ml_collections import ConfigDict

from xception_flax.config import reading, schema
from xception_flax.runtime import hosts
from xception_flax.runtime.errors import UserError

# Settings that a checkpoint is bound to, besides the network's own section: with other values its
# arrays would not fit or be of another origin, or examples would be seen twice or never.
BOUND = (
    'model', 'seed', 'init.weights', 'init.new_head', 'frozen', 'optimizer.name', 'preprocessing',
    'dataset.source', 'dataset.name', 'dataset.version', 'dataset.train_split',
    'dataset.num_classes',
)  # fmt: skip


@contextlib.contextmanager
def claim(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other programs out of it for as long as the context lasts.

    Raises:
      UserError: another program is at work in it.
      OSError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(filelock.FileLock(workdir / '.lock', timeout=0))
            except filelock.Timeout:
                free = False
            except NotImplementedError:
                pass  # a mount that knows no locks
        if not hosts.gather(np.bool_(free))[0]:
            raise UserError(f'{workdir} is in use by another training; wait for it, or stop it')
        yield


def differences(stored: ConfigDict, config: ConfigDict) -> tuple[list[str], list[str]]:
    """Compares a run's stored settings with those that it is to go on with.

    Returns:
      What cannot change under a checkpoint and what can, each as 'setting: old -> new'.
    """
    bound, free = [], []
    for path in schema.paths(config):
        old, new = stored[path], config[path]
        if old == new:
            continue
        line = f'config.{path}: {old!r} -> {new!r}'
        switched = (path == 'ema_decay' and bool(old) != bool(new)) or (
            path == 'dtype' and 'float64' in (old, new)
        )
        if path in BOUND or path.startswith(f'{config.model}.') or switched:
            bound.append(line)
        else:
            free.append(line)
    return bound, free


def check_fits(workdir: pathlib.Path, config: ConfigDict, class_names: Sequence[str]) -> list[str]:
    """Checks that a run that has checkpoints may go on with this config and these classes.

    Returns:
      The settings that have changed since, as 'setting: old -> new'.

    Raises:
      UserError: one has that the checkpoints are bound to, or the classes have; or what the folder
        holds of them is damaged.
    """
    path = workdir / 'config.json'
    if not path.exists():
        return []
    bound, free = differences(reading.from_json(path), config)
    old_names = read_classes(workdir)
    if old_names is not None:
        pairs = enumerate(itertools.zip_longest(old_names, class_names))
        changed = [f'class {i}: {old!r} -> {new!r}' for i, (old, new) in pairs if old != new]
        bound += changed[:1]  # as one that is added shifts all that follow
    if bound:
        raise UserError(
            f'{workdir} holds a run of other settings ({"; ".join(bound)}): '
            'take them back, or give another --workdir'
        )
    return free


def write_settings(workdir: pathlib.Path, config: ConfigDict, class_names: Sequence[str]) -> None:
    """Writes `config.json`, and the classes' names as `classes.json`; each whole or not at all."""
    names = json.dumps(list(class_names), indent=0, ensure_ascii=False) + '\n'
    for file, text in (('config.json', reading.to_json(config)), ('classes.json', names)):
        if jax.process_index() == 0:
            path = workdir / file
            partial = path.with_suffix('.partial')
            partial.write_text(text, encoding='utf-8')
            os.replace(partial, path)


def read_classes(workdir: pathlib.Path) -> list[str] | None:
    """The names of a run's classes as its data has them, [] if it has none; None if not written.

    Raises:
      UserError: `classes.json` is damaged.
    """
    path = workdir / 'classes.json'
    if not path.is_file():
        return None
    try:
        return [str(name) for name in json.loads(path.read_text(encoding='utf-8'))]
    except (TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged: {error}') from error
