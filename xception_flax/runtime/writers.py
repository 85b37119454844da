"""Where a run's numbers go: `metrics.jsonl` and TensorBoard."""

import json
import math
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

Record = dict[str, Any]


class MetricWriter:
    """Appends records to `workdir/metrics.jsonl`, one JSON object a line, and to TensorBoard."""

    def __init__(self, workdir: pathlib.Path, kept: list[Record], start: int):
        """Opens the files, with the records that a run going on after step `start` keeps.

        It comes by the later steps again.
        """
        self.path = workdir / 'metrics.jsonl'
        partial = self.path.with_suffix('.partial')
        partial.write_text(''.join(json.dumps(record) + '\n' for record in kept))
        os.replace(partial, self.path)
        self._file = self.path.open('a')
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1)

    def write(self, record: Record) -> None:
        """Writes one record: 'step', 'split', numbers, and perhaps 'weights'."""
        record = finite(record)
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        prefix = '/'.join(str(record[key]) for key in ('split', 'weights') if key in record)
        for key, value in record.items():
            if key != 'step' and isinstance(value, int | float):
                self._board.add_scalar(f'{prefix}/{key}', value, record['step'])

    def sync(self) -> None:
        """Sees to it that all is on the disk."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


def read(path: pathlib.Path) -> list[Record]:
    """The records of a `metrics.jsonl`; a line that a crash cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def finite(record: Record) -> Record:
    """JSON has no NaN and no infinity: they become strings."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
