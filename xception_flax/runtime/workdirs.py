"""The folder of a run: one program at a time, and one run only."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import locks, paths, processes
from xception_flax.base.errors import UserError
from xception_flax.config import reading, schema
from xception_flax.data import protocols

# Settings that may not change under a checkpoint, besides the network's own section: its arrays
# would not fit or have another origin, examples would be seen twice or never, or steps, in which
# schedules count, would change their meaning (to save memory, `accumulation` may change).
BOUND = (
    'model', 'seed', 'batch_size', 'init.weights', 'init.new_head', 'frozen', 'frozen_statistics',
    'optimizer.name', 'preprocessing', 'dataset.source', 'dataset.name', 'dataset.version',
    'dataset.train_split', 'dataset.num_classes',
)  # fmt: skip


@contextlib.contextmanager
def claim(workdir: paths.Path) -> Iterator[locks.Lock]:
    """Makes the folder, and locks it against other programs inside the context.

    Yields:
      The lock, whose `check` is called before anything is written.

    Raises:
      UserError: another program uses it.
      OSError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        lock: locks.Lock | None = locks.Lock()
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locks.lock(workdir / '.lock'))
        if not processes.gather(np.bool_(lock is not None))[0]:
            raise UserError(f'{workdir} is in use by another training; wait for it, or stop it')
        assert lock is not None
        yield lock


def differences(stored: ConfigDict, config: ConfigDict) -> tuple[list[str], list[str]]:
    """Compares the stored settings of a run with those to resume with.

    Returns:
      The changes that a checkpoint does not allow and those that it does, each as
      'setting: old -> new'.
    """
    bound, free = [], []
    for path in schema.paths(config):
        old, new = (protocols.setting(c, path) for c in (stored, config))
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


def check_fits(workdir: paths.Path, config: ConfigDict, class_names: Sequence[str]) -> list[str]:
    """Checks that a run with checkpoints can resume with this config and these classes.

    Returns:
      The settings that have changed, as 'setting: old -> new'.

    Raises:
      UserError: a setting has changed that a checkpoint does not allow to, or the classes have; or
        the files that say so are damaged.
    """
    path = workdir / 'config.json'
    if not path.exists():
        return []
    bound, free = differences(reading.from_json(path), config)
    old_names = read_classes(workdir)
    if old_names is not None:
        pairs = enumerate(itertools.zip_longest(old_names, class_names))
        changed = [f'class {i}: {old!r} -> {new!r}' for i, (old, new) in pairs if old != new]
        bound += changed[:1]  # an added class shifts all that follow
    if bound:
        raise UserError(
            f'the run in {workdir} was started with other settings ({"; ".join(bound)}): '
            'restore them, or give another --workdir'
        )
    return free


def write_settings(
    workdir: paths.Path, config: ConfigDict, class_names: Sequence[str] | None
) -> None:
    """Writes `config.json`, and `classes.json` unless nothing is known of the classes.

    Each file is written whole or not at all.
    """
    texts = {'config.json': reading.to_json(config)}
    if class_names is not None:
        names = json.dumps(list(class_names), indent=0, ensure_ascii=False)
        texts['classes.json'] = f'{names}\n'
    for file, text in texts.items() if jax.process_index() == 0 else ():
        paths.write(workdir / file, text)


def read_classes(workdir: paths.Path) -> list[str] | None:
    """The class names of a run, as its data has them; [] if it has none, None if not known.

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
