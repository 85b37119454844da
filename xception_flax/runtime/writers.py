"""Writes the numbers of a run to `metrics.jsonl` and TensorBoard."""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

from xception_flax.base import extras, paths

Entry = dict[str, Any]


class MetricWriter:
    """Appends entries to `workdir/metrics.jsonl`, one JSON object per line, and to TensorBoard.

    Nothing can be appended to an object in a bucket, so there all is written anew at each `sync`.
    Without tensorboardX (extra `[train]`) there are no files for TensorBoard.
    """

    def __init__(self, workdir: paths.Path, kept: list[Entry], start: int):
        """Opens the files, with the entries that a run keeps that resumes from step `start`."""
        lines = (json.dumps(entry) + '\n' for entry in kept)
        kind = _Held if paths.in_bucket(workdir) else _Appended
        self._lines: _Held | _Appended = kind(workdir / 'metrics.jsonl', ''.join(lines))
        self._board = None
        self._events = workdir / 'tensorboard'
        if extras.present('tensorboardX'):
            from tensorboardX import SummaryWriter

            self._temporary = tempfile.TemporaryDirectory() if paths.in_bucket(workdir) else None
            folder = self._temporary.name if self._temporary else str(self._events)
            self._board = SummaryWriter(folder, purge_step=start + 1)

    def write(self, entry: Entry) -> None:
        """Writes one entry: 'step', 'split', numbers, and of evaluations 'weights'."""
        entry = finite(entry)
        self._lines.add(json.dumps(entry) + '\n')
        if not self._board:
            return
        prefix = '/'.join(str(entry[key]) for key in ('split', 'weights') if key in entry)
        for key, value in entry.items():
            if key != 'step' and isinstance(value, int | float):
                self._board.add_scalar(f'{prefix}/{key}', value, entry['step'])

    def entries(self) -> list[Entry]:
        """All entries so far."""
        return _parsed(self._lines.text().splitlines())

    def sync(self) -> None:
        """Flushes everything to the disk, or to the bucket.

        Raises:
          UserError: the bucket does not take it.
        """
        self._lines.sync()
        if self._board:
            self._board.flush()
            if self._temporary:
                paths.upload(pathlib.Path(self._temporary.name), self._events)

    def close(self) -> None:
        """Closes the files; what was not synchronised is lost in a bucket."""
        self._lines.close()
        if self._board:
            self._board.close()
            if self._temporary:
                self._temporary.cleanup()


class _Appended:
    """A file on a disk."""

    def __init__(self, path: pathlib.Path, text: str):
        paths.write(path, text)
        self.path, self._file = path, path.open('a')

    def add(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def text(self) -> str:
        return self.path.read_text()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Held:
    """An object in a bucket, and its content here."""

    def __init__(self, path: paths.Path, text: str):
        self.path, self._parts, self._synced = path, [text], False
        self.sync()

    def add(self, line: str) -> None:
        self._parts.append(line)
        self._synced = False

    def text(self) -> str:
        return ''.join(self._parts)

    def sync(self) -> None:
        if not self._synced:
            paths.write(self.path, self.text())
            self._synced = True

    def close(self) -> None:
        pass


def read(path: paths.Path) -> list[Entry]:
    """The entries of a `metrics.jsonl`; a line that a crash cut short is left out."""
    return _parsed(path.read_text().splitlines() if path.exists() else ())


def _parsed(lines: Iterable[str]) -> list[Entry]:
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def finite(entry: Entry) -> Entry:
    """The entry with NaN and infinity, which JSON lacks, as strings."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
