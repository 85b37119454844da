"""Writes the numbers of a run to `metrics.jsonl`, TensorBoard and a tracker."""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any, Protocol

from xception_flax.base import extras, paths
from xception_flax.runtime.trackers import Tracker

Entry = dict[str, Any]
# Numbers that depend on the clock, so that they differ between runs that are otherwise the same.
OF_THE_CLOCK = ('examples_per_second', 'input_wait_fraction', 'flops_utilisation')


class Sink(Protocol):
    """What takes numbers by name besides `metrics.jsonl`."""

    def add(self, values: dict[str, float], step: int) -> None:
        """Takes values by name, such as 'test/averaged/top1'."""

    def flush(self) -> None:
        """Brings them to the disk, or to the bucket."""

    def close(self) -> None:
        """Closes the files."""


class MetricWriter:
    """Appends entries to `workdir/metrics.jsonl`, one JSON object per line, and to other sinks.

    Nothing can be appended to an object in a bucket, so there all is written anew at each `sync`.
    Without tensorboardX (extra `[train]`) there are no files for TensorBoard.
    """

    def __init__(
        self, workdir: paths.Path, kept: list[Entry], start: int, tracker: Tracker | None = None
    ):
        """Opens the files, with the entries that a run keeps that resumes from step `start`."""
        lines = (json.dumps(entry) + '\n' for entry in kept)
        kind = _Held if paths.in_bucket(workdir) else _Appended
        self._lines: _Held | _Appended = kind(workdir / 'metrics.jsonl', ''.join(lines))
        for entry in kept:
            if tracker and entry['step'] > tracker.stored:
                tracker.add(_numbers(entry), entry['step'])
        self._sinks: list[Sink] = [tracker] if tracker else []
        if extras.present('tensorboardX'):
            self._sinks.append(_Board(workdir / 'tensorboard', start))

    def write(self, entry: Entry) -> None:
        """Writes one entry: 'step', 'split', numbers, and of evaluations 'weights'."""
        entry = finite(entry)
        self._lines.add(json.dumps(entry) + '\n')
        for sink in self._sinks:
            sink.add(_numbers(entry), entry['step'])

    def entries(self) -> list[Entry]:
        """All entries so far."""
        return _parsed(self._lines.text().splitlines())

    def sync(self) -> None:
        """Flushes everything to the disk, or to the bucket.

        Raises:
          UserError: the bucket does not take it.
        """
        for sink in (self._lines, *self._sinks):
            sink.flush()

    def close(self) -> None:
        """Closes the files; what was not synchronised is lost in a bucket."""
        for sink in (self._lines, *self._sinks):
            sink.close()


class _Board:
    """Event files of TensorBoard."""

    def __init__(self, events: paths.Path, start: int):
        from tensorboardX import SummaryWriter

        self._events = events
        self._temporary = tempfile.TemporaryDirectory() if paths.in_bucket(events) else None
        folder = self._temporary.name if self._temporary else str(events)
        self._writer = SummaryWriter(folder, purge_step=start + 1)

    def add(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()
        if self._temporary:
            paths.upload(pathlib.Path(self._temporary.name), self._events)

    def close(self) -> None:
        self._writer.close()
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

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Held:
    """An object in a bucket, and its content here."""

    def __init__(self, path: paths.Path, text: str):
        self.path, self._parts, self._synced = path, [text], False
        self.flush()

    def add(self, line: str) -> None:
        self._parts.append(line)
        self._synced = False

    def text(self) -> str:
        return ''.join(self._parts)

    def flush(self) -> None:
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


def _numbers(entry: Entry) -> dict[str, float]:
    """The numbers of an entry by name, such as 'test/averaged/top1'."""
    prefix = '/'.join(str(entry[key]) for key in ('split', 'weights') if key in entry)
    return {
        f'{prefix}/{key}': value
        for key, value in entry.items()
        if key != 'step' and isinstance(value, int | float)
    }


def finite(entry: Entry) -> Entry:
    """The entry with NaN and infinity, which JSON lacks, as strings."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
