"""Where the images of a split lie in its files: found once, and kept."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from absl import logging
from tqdm import tqdm

from xception_flax.base.errors import UserError
from xception_flax.base.locks import lock
from xception_flax.data.sources.folder import is_shown
from xception_flax.data.sources.imagenet.containers import Entry

VERSION = 2  # of the kept file
# ImageNet's own names, to which some copies add the class.
OFFICIAL = re.compile(r'(n\d{8}_\d+|ILSVRC2012_val_\d{8})(?:_(n\d{8}))?$')


@dataclasses.dataclass(frozen=True)
class Index:
    """The images of a split, in the order of their names.

    Attributes:
      names: `[N]` bytes; ImageNet's own where the copy tells them.
      wnids: `[N]` bytes: WordNet ids of the classes; empty where the copy does not tell.
      labels: `[N]` int32: classes; -1 where the copy does not tell.
      files: `[N]` int32: numbers of files.
      offsets: `[N]` int64: where the bytes of an image begin (`containers.Entry`).
      sizes: `[N]` int64: in bytes.
      left_out: number of files that are hidden, no images, or there twice.
    """

    names: np.ndarray
    wnids: np.ndarray
    labels: np.ndarray
    files: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    left_out: np.ndarray


def cache() -> pathlib.Path:
    """The user's folder for indices."""
    import pooch  # it knows where each system keeps caches

    return pathlib.Path(pooch.os_cache('xception_flax')) / 'imagenet'


def is_wnid(name: str) -> bool:
    """Whether a name is a WordNet id of a noun."""
    return re.fullmatch(r'n\d{8}', name) is not None


def is_official(name: str) -> bool:
    """Whether a file has one of ImageNet's names."""
    return OFFICIAL.match(name.rpartition('/')[2].partition('.')[0]) is not None


def official(name: str) -> tuple[str, str]:
    """ImageNet's name for a file, and the WordNet id of its class if the name or folder has it."""
    folder, _, base = name.rpartition('/')
    found = OFFICIAL.match(base.partition('.')[0])
    wnid = (found[2] or '') if found else ''
    if found and found[1].startswith('n'):
        wnid = found[1].partition('_')[0]
    folder = folder.rpartition('/')[2]
    wnid = wnid or (folder if is_wnid(folder) else '')
    return (f'{found[1]}.JPEG' if found else name), wnid


def make(
    paths: Sequence[str], scan: Callable[[str], Iterable[Entry]], title: str, expected: int
) -> Index:
    """Looks through the files.

    Args:
      paths: the files.
      scan: gives the images in one of them.
      title: what the progress bar says.
      expected: about how many images there are.

    Raises:
      UserError: a file is damaged.
    """
    rows, hidden = [], 0
    bar = tqdm(total=expected, desc=title, unit='image', disable=None, dynamic_ncols=True)
    with bar:
        for number, path in enumerate(paths):
            for entry in _checked(path, scan):
                bar.update()
                if entry.offset < 0 or _is_hidden(entry.name):
                    hidden += 1
                    continue
                name, wnid = official(entry.name)
                if entry.name and not is_official(entry.name):  # a name of this file only
                    name = f'{path.rpartition("/")[2]}/{name}'
                rows.append((name.encode(errors='surrogateescape'), wnid, number, *entry[1:]))
    rows.sort(key=lambda row: (row[0], row[2], row[4]))  # without names in the order of the files
    twice = {i for i in range(1, len(rows)) if rows[i][0] and rows[i][0] == rows[i - 1][0]}
    rows = [row for i, row in enumerate(rows) if i not in twice]
    columns = zip(*rows, strict=True) if rows else [()] * 6
    names, wnids, files, labels, offsets, sizes = columns
    return Index(
        np.array(names, bytes),
        np.array(wnids, bytes),
        np.array(labels, np.int32),
        np.array(files, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(hidden + len(twice)),
    )


def _checked(path: str, scan: Callable[[str], Iterable[Entry]]) -> Iterator[Entry]:
    """The images in a file; what a damaged one may raise is an error for people."""
    try:
        for entry in scan(path):
            if not -1 <= entry.label < 2**31:
                raise ValueError(f'{entry.name} has the class {entry.label}')
            yield entry
    except UserError:
        raise
    except (ValueError, OverflowError, RecursionError, MemoryError, EOFError) as error:
        raise UserError(f'{path} is damaged: {type(error).__name__}: {error}') from error


def _is_hidden(name: str) -> bool:
    return not all(part == '.' or is_shown(part) for part in name.split('/'))


def kept(
    folder: pathlib.Path,
    paths: Sequence[str],
    scan: Callable[[str], Iterable[Entry]],
    title: str,
    expected: int,
) -> Index:
    """The index that lies in `folder`, if the files still have its sizes and times; or a new one.

    Raises:
      UserError: a file is damaged, or the index cannot be written.
    """
    stats = [os.stat(path) for path in paths]
    seen = np.array([[stat.st_size, stat.st_mtime_ns] for stat in stats], np.int64)
    key = '\n'.join([str(VERSION), *map(os.path.abspath, paths)])
    digest = hashlib.sha256(key.encode(errors='surrogateescape'))
    file = folder / f'{digest.hexdigest()[:16]}.npz'
    if found := _load(file, seen, title):
        return found
    with contextlib.ExitStack() as stack:
        with _errors(title, folder):
            folder.mkdir(parents=True, exist_ok=True)
            alone = lock(file.with_name(f'{file.name}.lock'), timeout=-1)
            stack.enter_context(alone)  # of several one makes it
        if found := _load(file, seen, title):
            return found
        made = make(paths, scan, title, expected)
        with _errors(title, folder):
            _save(file, made, seen)
    return made


@contextlib.contextmanager
def _errors(title: str, folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f'the index of {title} cannot be kept in {folder}: {error}; '
            'give a folder as config.dataset.index'
        ) from error


def _load(file: pathlib.Path, seen: np.ndarray, title: str) -> Index | None:
    try:
        with np.load(file) as found:
            if np.array_equal(found['seen'], seen):
                return Index(**{name: found[name] for name in found.files if name != 'seen'})
        logging.warning('%s has changed, and is looked through again', title)
    except FileNotFoundError:
        pass
    except Exception:  # of many kinds, where bytes are damaged
        logging.warning('%s is damaged, and made again', file)
    return None


def _save(file: pathlib.Path, made: Index, seen: np.ndarray) -> None:
    partial = file.with_name(f'{file.stem}.{uuid.uuid4().hex}.partial')
    try:
        with partial.open('wb') as target:
            np.savez(target, seen=seen, **vars(made))
            os.fsync(target.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
