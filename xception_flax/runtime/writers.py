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

    def __init__(self, workdir: pathlib.Path, start: int):
        """Opens the files, forgetting all that was written after step `start`.

        A run that goes on from a checkpoint comes by those steps again.
        """
        self.path = workdir / 'metrics.jsonl'
        kept = [record for record in read(self.path) if record['step'] <= start]
        partial = self.path.with_suffix('.partial')
        partial.write_text(''.join(json.dumps(record) + '\n' for record in kept))
        os.replace(partial, self.path)
        self._file = self.path.open('a')
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1)

    def write(self, record: Record) -> None:
        """Writes one record: 'step', 'split', numbers, and perhaps 'weights'."""
        record = {key: _finite(value) for key, value in record.items()}
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        prefix = '/'.join(str(record[key]) for key in ('split', 'weights') if key in record)
        for key, value in record.items():
            if key != 'step' and isinstance(value, int | float):
                self._board.add_scalar(f'{prefix}/{key}', value, record['step'])

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


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
