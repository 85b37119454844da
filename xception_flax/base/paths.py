"""Paths, local or in a bucket of Google Cloud Storage (`gs://BUCKET/...`).

Only this module, and `leases` for locks, knows the difference: a bucket has objects, which are
written whole and never renamed, and no folders. `etils.epath` reads and lists both.
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from xception_flax.base import extras
from xception_flax.base.errors import UserError

# With TensorFlow installed, epath would read buckets by TensorFlow's file system.
os.environ.setdefault('EPATH_USE_TF', 'false')

Path = pathlib.Path  # or the epath.Path of a bucket, which has the same methods
SCHEMES = {'gs': 'gcs', 's3': 's3'}  # of buckets, and the extra that reads them
# By words in what a bucket's library says.
REMEDIES = {
    'credentials anonymous unauthorized': 'gcloud auth application-default login gives credentials',
    'forbidden permission': 'the account needs the role Storage Object User on the bucket',
    'notfound': 'is there such a bucket?',
}
PATIENCE = 600  # seconds that a bucket may be unreachable


def path(text: str | os.PathLike[str], writing: bool = False) -> Path:
    """The path; of a local one ~ is the home folder.

    Args:
      text: a local path, or the address of an object in a bucket.
      writing: whether a run will be written there.

    Raises:
      UserError: the address is of another kind, or its library is missing.
    """
    scheme, address, _ = os.fspath(text).partition('://')
    if not address:
        return pathlib.Path(text).expanduser()
    if scheme not in SCHEMES:
        raise UserError(f'{text} is neither a path nor in a bucket (gs://BUCKET/PATH)')
    if writing and scheme != 'gs':
        raise UserError(
            f'{text}: checkpoints cannot be written there; mount the bucket (Mountpoint for S3, '
            's3fs-fuse) and give the path, or use gs://'
        )
    _prepare(scheme)
    return epath.Path(text)


def folder(text: str | os.PathLike[str], writing: bool = False) -> Path:
    """The absolute path of a folder; one in a bucket is looked up.

    Raises:
      UserError: as for `path`; or the bucket cannot be read.
    """
    found = path(text, writing)
    if not in_bucket(found):
        return found.absolute()
    with errors(found):
        found.exists()
    return found


def in_bucket(path: Path) -> bool:
    """Whether a path is in a bucket."""
    return '://' in os.fspath(path)


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turns whatever a bucket's library raises inside the context into one line.

    Raises:
      UserError: the bucket did not do what was asked.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # of gcsfs, aiohttp, google-auth, requests, ...
        if not in_bucket(path):
            raise
        raise UserError(f'{path}: {describe(error)}') from error


def describe(error: Exception) -> str:
    """What a bucket's library says, in one line, and what to do about it."""
    text = ' '.join(str(error).split())
    if said := re.search(r'"message": ?"([^"]+)"', text):
        text = said[1]
    text = text[:200] or type(error).__name__
    lower = f'{type(error).__name__} {text}'.lower()
    for words, remedy in REMEDIES.items():
        if any(word in lower for word in words.split()):
            return f'{text} ({remedy})'
    return text


def files(folder: Path) -> list[Path]:
    """All files below a folder, at any depth, in order."""
    if not in_bucket(folder):
        return sorted(file for file in folder.rglob('*') if file.is_file())
    scheme = os.fspath(folder).partition('://')[0]
    with errors(folder):
        names = fsspec.filesystem(scheme).find(os.fspath(folder))
    return sorted(epath.Path(f'{scheme}://{name}') for name in names)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      UserError: the bucket does not take it.
      OSError: the disk does not.
    """
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        with errors(path):
            path.write_bytes(data)
        return
    partial = path.with_suffix('.partial')
    partial.write_bytes(data)
    os.replace(partial, path)


def move_folder(old: Path, new: Path) -> None:
    """Renames a folder; in a bucket, whose objects have no other name, it is copied first.

    Where that is interrupted, the old one is there, or what is left of it is no checkpoint: orbax's
    mark of a whole one goes first.
    """
    if not in_bucket(old):
        old.rename(new)
        return
    with errors(old):
        for file in files(old):
            (new / file.relative_to(old)).write_bytes(file.read_bytes())
        for mark in old.glob('*commit_success*'):
            mark.unlink()
        remove_folder(old)


def remove_folder(path: Path) -> None:
    """Removes what is below a path in a bucket."""
    epath.Path(path).rmtree(missing_ok=True)


@contextlib.contextmanager
def local(path: Path) -> Iterator[pathlib.Path]:
    """A local file or folder with the content of a path, inside the context.

    Raises:
      UserError: the bucket cannot be read.
    """
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = pathlib.Path(temporary) / path.name
        with errors(path):
            download(path, copy)
        try:
            yield copy
        except UserError as error:
            raise UserError(str(error).replace(str(copy), str(path))) from error


def download(path: Path, target: pathlib.Path) -> None:
    """Copies a file or a folder of a bucket to this machine."""
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for inside in path.iterdir():
            download(inside, target / inside.name)
    else:
        target.write_bytes(path.read_bytes())


def upload(source: pathlib.Path, path: Path) -> None:
    """Copies a local file, or the files of a folder, to a path in a bucket.

    Raises:
      UserError: the bucket does not take it.
    """
    if source.is_dir():
        for inside in sorted(source.iterdir()):
            upload(inside, path / inside.name)
    else:
        write(path, source.read_bytes())


@functools.cache
def _prepare(scheme: str) -> None:
    """Sets up a bucket's library before its first use."""
    if scheme == 's3':
        with extras.needed('s3', 's3://'):
            import s3fs  # noqa: F401
    else:
        with extras.needed('gcs', 'gs://'):
            import gcsfs.retry
        logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # it logs what it raises

        class Patient(fsspec.get_filesystem_class('gs')):  # type: ignore[misc]
            """gcsfs, which by itself waits for half a minute."""

            async def _request(self, *args: Any, **kwargs: Any) -> Any:
                began = time.monotonic()
                while True:
                    try:
                        return await super()._request(*args, **kwargs)
                    except Exception as error:
                        transient = gcsfs.retry.is_retriable(error)
                        if not transient or time.monotonic() - began > PATIENCE:
                            raise

        fsspec.register_implementation('gs', Patient, clobber=True)
        fsspec.register_implementation('gcs', Patient, clobber=True)
    for name in ('gcs', 'gs', 's3'):  # others write there, too: a list is never kept
        fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
