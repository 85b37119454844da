"""Writes the numbers of a run to `metrics.jsonl` and TensorBoard."""

import json
import math
import os
import pathlib
from typing import Any

from xception_flax.base import extras

Entry = dict[str, Any]


class MetricWriter:
    """Appends entries to `workdir/metrics.jsonl`, one JSON object per line, and to TensorBoard.

    Without tensorboardX (extra `[train]`) there are no files for TensorBoard.
    """

    def __init__(self, workdir: pathlib.Path, kept: list[Entry], start: int):
        """Opens the files, with the entries that a run keeps that resumes from step `start`."""
        self.path = workdir / 'metrics.jsonl'
        partial = self.path.with_suffix('.partial')
        partial.write_text(''.join(json.dumps(entry) + '\n' for entry in kept))
        os.replace(partial, self.path)
        self._file = self.path.open('a')
        self._board = None
        if extras.present('tensorboardX'):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1)

    def write(self, entry: Entry) -> None:
        """Writes one entry: 'step', 'split', numbers, and of evaluations 'weights'."""
        entry = finite(entry)
        self._file.write(json.dumps(entry) + '\n')
        self._file.flush()
        if not self._board:
            return
        prefix = '/'.join(str(entry[key]) for key in ('split', 'weights') if key in entry)
        for key, value in entry.items():
            if key != 'step' and isinstance(value, int | float):
                self._board.add_scalar(f'{prefix}/{key}', value, entry['step'])

    def sync(self) -> None:
        """Flushes everything to the disk."""
        os.fsync(self._file.fileno())
        if self._board:
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board:
            self._board.close()


def read(path: pathlib.Path) -> list[Entry]:
    """The entries of a `metrics.jsonl`; a line that a crash cut short is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
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
