"""Paths, local or in a bucket of Google Cloud Storage (`gs://BUCKET/...`).

Only this module, `gcs` and `locks` know the difference: a bucket has objects, which are written
whole and never renamed, and no folders. `etils.epath` reads and lists both.
"""

import base64
import contextlib
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
from etils import epath

from xception_flax.base import extras
from xception_flax.base.errors import UserError, described

# With TensorFlow installed, epath would read buckets by TensorFlow's file system.
os.environ.setdefault('EPATH_USE_TF', 'false')

Path = pathlib.Path  # or the epath.Path of a bucket, which has the same methods
SCHEMES = {'gs': 'gcs', 's3': 's3'}  # of buckets, and the extra that reads them


def path(text: str | os.PathLike[str], writing: bool = False) -> Path:
    """The path; of a local one ~ is the home folder.

    Args:
      text: a local path, or the address of an object in a bucket.
      writing: whether a run will be written there.

    Raises:
      UserError: the address is of another kind, or its library is missing.
    """
    scheme, address, name = os.fspath(text).partition('://')
    if re.match(rf'({"|".join(SCHEMES)}):(?!//[^/])', os.fspath(text)):
        raise UserError(f'{text} names no bucket; give an address like gs://BUCKET/PATH')
    if not address:
        return pathlib.Path(text).expanduser()
    if scheme not in SCHEMES:
        raise UserError(f'{text} is neither a path nor in a bucket (gs://BUCKET/PATH)')
    if writing and (special := re.search('[#?]', name)):
        raise UserError(
            f'{text}: with {special[0]} in its name, checkpoints would go to another address; give '
            'another name'
        )
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


def on_disk(text: str | os.PathLike[str], what: str) -> pathlib.Path:
    """The path, which has to be a local one.

    Raises:
      UserError: it is in a bucket; the message says that `what` has to be on a disk.
    """
    if in_bucket(found := path(text)):
        raise UserError(f'{what}: {text} is in a bucket; give a folder on a disk')
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
        raise UserError(f'{path}: {described(error)}') from error


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
        for file in below(old):
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
    inside = below(path) if path.is_dir() else [path]
    for file in inside:
        copy = target / file.relative_to(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())


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


class Entry(NamedTuple):
    """What lies in a folder."""

    name: str
    is_folder: bool
    is_file: bool  # not a pipe, nor a link to nothing


class File(NamedTuple):
    """A file, as its folder lists it.

    Attributes:
      path: where it is.
      size: in bytes.
      version: changes with the content: an object's generation, a file's time.
      crc32c: checksum of the content, in base64; '' where it is not listed.
    """

    path: str
    size: int
    version: str
    crc32c: str = ''


def entries(folder: Path) -> list[Entry]:
    """What lies in a folder; a bucket is asked once.

    Raises:
      UserError: the bucket cannot be read.
    """
    if in_bucket(folder):
        found = _listed(folder, deep=False)
        kinds = [(path.rpartition('/')[2], info['type']) for path, info in found.items()]
        return [Entry(name, kind == 'directory', kind == 'file') for name, kind in kinds if name]
    with os.scandir(folder) as scan:
        return [Entry(entry.name, entry.is_dir(), entry.is_file()) for entry in scan]


def files(folder: Path, deep: bool = True, links: bool = False) -> list[File]:
    """The files in a folder; none if there is no such folder.

    Args:
      folder: the folder.
      deep: whether also those in its folders are listed.
      links: whether folders are listed that are links in `folder`; deeper ones never are.

    Raises:
      UserError: the bucket cannot be read.
      OSError: a file is a link to nothing.
    """
    if in_bucket(folder):
        listed = _listed(folder, deep).values()
        return [_object(folder, info) for info in listed if _is_object(info)]
    found = []
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if entry.is_dir(follow_symlinks=links):
            found += files(pathlib.Path(entry.path)) if deep else []
        elif not entry.is_dir() and (entry.is_file() or entry.is_symlink()):
            found.append(_file(entry.path))
    return found


def below(folder: Path) -> list[Path]:
    """All files below a folder, at any depth, in order; also links to nothing."""
    if in_bucket(folder):
        return sorted(epath.Path(file.path) for file in files(folder))
    return sorted(path for path in folder.rglob('*') if not path.is_dir())


def file(path: Path) -> File | None:
    """One file; None if it is not there.

    Raises:
      UserError: the bucket cannot be read.
    """
    if not in_bucket(path):
        return _file(os.fspath(path)) if path.is_file() else None
    with contextlib.suppress(FileNotFoundError), errors(path):
        info = _system(_scheme(path)).info(os.fspath(path))
        return _object(path, info) if _is_object(info) else None
    return None


def _file(path: str) -> File:
    stat = os.stat(path)
    return File(path, stat.st_size, str(stat.st_mtime_ns))


def _object(path: Path, info: dict[str, Any]) -> File:
    """What a bucket says of an object, which lies at or below a path."""
    changing = (info.get(name) for name in ('generation', 'ETag', 'mtime', 'LastModified'))
    version = str(next(filter(None, changing), ''))
    address = f'{_scheme(path)}://{info["name"]}'
    return File(address, info['size'], version, info.get('crc32c', ''))


def _is_object(info: dict[str, Any]) -> bool:
    return info['type'] == 'file' and not info['name'].endswith('/')  # a folder's placeholder


def _scheme(path: Path) -> str:
    return os.fspath(path).partition('://')[0]


def _listed(folder: Path, deep: bool) -> dict[str, dict[str, Any]]:
    """The objects below a folder of a bucket by their path, or what lies in it."""
    system = _system(_scheme(folder))
    with errors(folder):
        try:
            if deep:
                return system.find(os.fspath(folder), detail=True)
            return {info['name']: info for info in system.ls(os.fspath(folder), detail=True)}
        except FileNotFoundError:
            return {}


def read(path: str, offset: int, size: int) -> bytes:
    """A part of a file, from any number of threads.

    Raises:
      UserError: the bucket cannot be read.
      OSError: the disk cannot.
    """
    if not size:
        return b''
    scheme, address, _ = path.partition('://')
    if address:
        with errors(epath.Path(path)):
            return _system(scheme).cat_file(path, offset, offset + size)
    with open(path, 'rb') as file:
        file.seek(offset)
        return file.read(size)


def crc32c(file: pathlib.Path) -> str:
    """The checksum of a local file, as `File` has it."""
    import google_crc32c  # of google-cloud-storage

    checksum = google_crc32c.Checksum()
    with file.open('rb', buffering=0) as opened:
        while data := opened.read(2**20):
            checksum.update(data)
    return base64.b64encode(checksum.digest()).decode()


@functools.cache
def _system(scheme: str) -> Any:
    """The file system of a kind of buckets, one for all threads."""
    _prepare(scheme)
    return fsspec.filesystem(scheme)


@functools.cache
def _prepare(scheme: str) -> None:
    """Sets up a bucket's library before its first use."""
    if scheme == 's3':
        with extras.needed('s3', 's3://'):
            import s3fs  # noqa: F401
    else:
        with extras.needed('gcs', 'gs://'):
            from xception_flax.base import gcs
        gcs.register()
    for name in ('gcs', 'gs', 's3'):  # others write there, too: a list is never kept
        fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
