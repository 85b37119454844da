"""Copies the files of a data set to a disk of this machine, from a bucket or a slower disk."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from xception_flax.base import locks, paths
from xception_flax.base.errors import UserError

PART = 16 * 2**20  # bytes that a thread copies at once: a tar of ImageNet has 138 GB
THREADS = 32
INTERVAL = 30  # seconds between lines of progress
BLOCK = 4096  # bytes that a disk takes for the end of a file
NOTES = '.copied'  # in the folder of the copy, beside a lock
PARTIAL = '.partial'  # ending of a file that is not whole yet


def copy(
    source: paths.Path, target: pathlib.Path, wanted: Callable[[], Mapping[str, list[paths.File]]]
) -> None:
    """Copies what is not there yet; of several processes one does, and the others wait.

    A file that has its name is whole: what was written has been read again, and compared with what
    was read, in size and in the CRC32C that a bucket of Google lists. Notes in the folder say which
    version each file is of; what has changed since, in the source or in the copy (by size and
    time), is copied again.

    Args:
      source: folder of the data set.
      target: folder of the copy: a new one, or one that this function has filled.
      wanted: lists the files of each split.

    Raises:
      UserError: files are missing, there is no room for them, they cannot be read, or `target`
        holds something else.
      OSError: the disk fails.
    """
    if not paths.in_bucket(source):
        inside, outside = target.resolve(), source.resolve()
        if inside.is_relative_to(outside) or outside.is_relative_to(inside):
            raise UserError(f'config.dataset.copy_to: {target} and {source} lie in each other')
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'config.dataset.copy_to: {error}; give a new folder') from error
    with _alone(target):
        notes = _Notes(source, target)
        files: dict[str, tuple[str, paths.File]] = {}
        for split, found in wanted().items():
            if not found:
                raise UserError(
                    f'config.dataset.copy_to: {source} has no files of {split!r}; set '
                    'config.dataset.data_dir and the names of the splits'
                )
            for file in found:
                files.setdefault(_place(file.path, source), (split, file))
            notes.forget(split, files)
        jobs = [_Job(place, *found) for place, found in files.items()]
        missing = [job for job in jobs if not notes.has(job)]
        if not missing:
            _say(f'{target} has the {len(files):,} files of {source}')
            return
        notes.forget_other_versions(missing)
        _check_room(source, target, missing, notes)
        with notes.open():
            _Copying(source, target, missing, notes).run()


class _Job(NamedTuple):
    """A file to copy: its path below the target, the split that needs it, and the source's."""

    place: str
    split: str
    file: paths.File

    def parts(self) -> range:
        """The numbers of its parts."""
        return range(max(1, -(-self.file.size // PART)))


class _Copying:
    """The threads that copy, and what they share."""

    def __init__(
        self, source: paths.Path, target: pathlib.Path, jobs: Sequence[_Job], notes: '_Notes'
    ):
        self.source, self.target, self.jobs, self.notes = source, target, jobs, notes
        self._lock = threading.Lock()
        self._unfinished = {job.place: len(job.parts()) for job in jobs}
        self._parts: Iterator[tuple[_Job, int]] = (
            (job, part) for job in jobs for part in job.parts()
        )
        self._began = self._said = time.monotonic()

    def run(self) -> None:
        """Copies everything."""
        size = sum(job.file.size for job in self.jobs)
        _say(
            f'copying {len(self.jobs):,} files, {_bytes(size)}, from {self.source} to {self.target}'
        )
        for folder in {(self.target / job.place).parent for job in self.jobs}:
            folder.mkdir(parents=True, exist_ok=True)
        self._bar = tqdm(
            total=size, desc='copying', unit='B', unit_scale=True, disable=None, dynamic_ncols=True
        )
        pool = concurrent.futures.ThreadPoolExecutor(THREADS, 'copy')
        with self._bar, pool:
            try:
                for _ in pool.map(lambda _: self._work(), range(THREADS)):
                    pass
            finally:
                self._end()  # the other threads, too
        seconds = time.monotonic() - self._began
        _say(f'copied in {seconds:,.1f} s, {_bytes(size / seconds)} per second')

    def _work(self) -> None:
        """Copies parts until there are no more."""
        try:
            while found := self._next():
                self._copy_part(*found)
        except BaseException:
            self._end()
            raise

    def _next(self) -> tuple[_Job, int] | None:
        with self._lock:
            return next(self._parts, None)

    def _end(self) -> None:
        with self._lock:
            self._parts = iter(())

    def _copy_part(self, job: _Job, part: int) -> None:
        partial = self.target / (job.place + PARTIAL)
        start = part * PART
        size = min(PART, job.file.size - start)
        if not self.notes.has_part(job, part):
            data = paths.read(job.file.path, start, size)
            if len(data) != size:
                raise UserError(f'{job.file.path} became shorter while it was copied; start again')
            _write_part(partial, start, data)
            if len(job.parts()) > 1:
                self.notes.add_part(job, part)
        with self._lock:
            self._unfinished[job.place] -= 1
            whole = not self._unfinished[job.place]
        if whole:
            self._finish(job, partial)
        with self._lock:
            self._show(size)

    def _finish(self, job: _Job, partial: pathlib.Path) -> None:
        """Compares a file with what the source tells of it, and gives it its name."""
        file = job.file
        if partial.stat().st_size != file.size or (
            file.crc32c and paths.crc32c(partial) != file.crc32c
        ):
            partial.unlink()
            raise UserError(
                f'{file.path}: the copy in {self.target} has another checksum; perhaps the file '
                'changed meanwhile: start again'
            )
        whole = self.target / job.place
        partial.replace(whole)
        self.notes.add(job, whole)

    def _show(self, size: int) -> None:
        """Moves the bar, or without a terminal prints a line now and then."""
        self._bar.update(size)
        if self._bar.disable:
            self._bar.n += size
            if time.monotonic() - self._said > INTERVAL:
                self._said = time.monotonic()
                _say(f'copied {_bytes(self._bar.n)} of {_bytes(self._bar.total)}')


class _Notes:
    """What the folder of the copy holds: a file of JSON lines, to which finished parts are added.

    Attributes:
      files: notes of whole files, by their path below the folder.
      parts: numbers of the parts that are there of other files, by path and version.
    """

    def __init__(self, source: paths.Path, target: pathlib.Path):
        """Reads them.

        Raises:
          UserError: the folder holds other files.
        """
        self.source, self.target, self.path = os.fspath(source), target, target / NOTES
        self.files: dict[str, dict[str, Any]] = {}
        self.parts: dict[tuple[str, str], set[int]] = {}
        self._lock = threading.Lock()
        self._file: Any = None
        lines = list(self._lines())
        if not lines and (there := set(os.listdir(target)) - {f'{NOTES}.lock'}):
            raise UserError(
                f'config.dataset.copy_to: {target} holds {min(there)}, which is no copy; give a '
                'new folder'
            )
        if lines and lines[0].get('source') != self.source:
            raise UserError(
                f'config.dataset.copy_to: {target} holds a copy of {lines[0].get("source")}; for '
                f'{source} give another folder, or delete it'
            )
        for line in lines[1:]:
            if 'part' in line:
                self.parts.setdefault((line['file'], line['version']), set()).add(line['part'])
            else:
                self.files[line['file']] = line

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with contextlib.suppress(ValueError):  # the last one, where the program was killed
                yield json.loads(line)

    def has(self, job: _Job) -> bool:
        """Whether this version of a file is there, as it was written."""
        note = self.files.get(job.place)
        if not note or (note['version'], note['size']) != (job.file.version, job.file.size):
            return False
        try:
            stat = (self.target / job.place).stat()
        except FileNotFoundError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (note['size'], note['time'])

    def has_part(self, job: _Job, part: int) -> bool:
        """Whether an earlier start has written a part of a file that is not whole."""
        return part in self.parts.get((job.place, job.file.version), ())

    def forget(self, split: str, files: Mapping[str, Any]) -> None:
        """Deletes the files of a split that the source has no more."""
        gone = [p for p, note in self.files.items() if note['split'] == split and p not in files]
        for place in gone:
            (self.target / place).unlink(missing_ok=True)
            del self.files[place]

    def forget_other_versions(self, jobs: Sequence[_Job]) -> None:
        """Deletes what is there of other versions of files that are to be copied."""
        versions = {job.place: job.file.version for job in jobs}
        for place, version in list(self.parts):
            partial = self.target / (place + PARTIAL)
            if versions.get(place, version) != version or not partial.exists():
                del self.parts[place, version]
        for job in jobs:
            self.files.pop(job.place, None)
            if (job.place, job.file.version) not in self.parts:
                (self.target / (job.place + PARTIAL)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Writes what is known, to which the notes of the context are added."""
        parts = [
            {'file': place, 'version': version, 'part': part}
            for (place, version), numbers in self.parts.items()
            for part in numbers
        ]
        lines = itertools.chain([{'source': self.source}], self.files.values(), parts)
        paths.write(self.path, ''.join(json.dumps(line) + '\n' for line in lines))
        with self.path.open('a') as self._file:
            yield

    def add(self, job: _Job, whole: pathlib.Path) -> None:
        """Notes a whole file."""
        file = job.file
        self._add(
            {
                'file': job.place,
                'split': job.split,
                'version': file.version,
                'size': file.size,
                'time': whole.stat().st_mtime_ns,
            }
        )

    def add_part(self, job: _Job, part: int) -> None:
        """Notes a part of a file."""
        self._add({'file': job.place, 'version': job.file.version, 'part': part})

    def _add(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()


def _place(path: str, source: paths.Path) -> str:
    """Where a file of the source lies below the folder of the copy.

    Raises:
      UserError: the name leads out of the folder.
    """
    place = path.removeprefix(f'{os.fspath(source)}/')
    if not all(part not in ('', '.', '..') for part in place.split('/')):
        raise UserError(f'{path} cannot be the name of a file')
    return place


def _check_room(
    source: paths.Path, target: pathlib.Path, jobs: Sequence[_Job], notes: _Notes
) -> None:
    there = sum(len(notes.parts.get((job.place, job.file.version), ())) for job in jobs) * PART
    needed = sum(-(-job.file.size // BLOCK) * BLOCK for job in jobs) - there
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f'config.dataset.copy_to: {target} has {_bytes(free)} free, and the files of {source} '
            f'need {_bytes(needed)}; free some, or give a folder on another disk'
        )


def _write_part(partial: pathlib.Path, start: int, data: bytes) -> None:
    """Writes a part of a file, and reads it again."""
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), 'r+b') as file:
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.seek(start)
            same = file.read(len(data)) == data
    except OSError as error:
        raise UserError(f'{partial} cannot be written: {error}') from error
    if not same:
        raise UserError(f'{partial} reads differently than it was written; use another disk')


@contextlib.contextmanager
def _alone(target: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock inside the context."""
    path = target / f'{NOTES}.lock'
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(locks.lock(path)):
            _say(f'waiting for another process that copies to {target}')
            stack.enter_context(locks.lock(path, timeout=-1))
        yield


def _bytes(size: float) -> str:
    return tqdm.format_sizeof(size, 'B')


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
