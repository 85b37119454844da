"""The runs of a study: their settings, their commands, and how far they are."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import settings
from experiments.studies.study import Study
from xception_flax.config import Durations, reading
from xception_flax.runtime import workdirs, writers


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a run is, by what is in its folder.

    Attributes:
      step: the last one that it has recorded.
      total: how many there are to be; None before a run has told how many examples there are.
      results: the evaluation of the last step, of the averaged weights where there are any; None
        before it.
      done: whether that step is also saved, and the run so complete.
      changed: settings with which it was trained and that are others now, in words.
    """

    step: int
    total: int | None
    results: writers.Record | None
    done: bool
    changed: tuple[str, ...]

    @property
    def share(self) -> float:
        """What share of its steps is done."""
        return min(self.step / self.total, 1.0) if self.total else 0.0

    def __str__(self) -> str:
        if self.done:
            differing = f'; now there is {", ".join(self.changed)}' if self.changed else ''
            return f'done, {self.step:,} steps{differing}'
        total = f' of {self.total:,}' if self.total else ''
        return f'at step {self.step:,}{total}' if self.step else 'not started'


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training of a study.

    Attributes:
      name: such as 'xception/seed0'.
      workdir: its folder.
      file: its config file.
      overrides: settings that differ from the file, the seed among them.
    """

    name: str
    workdir: pathlib.Path
    file: str
    overrides: Mapping[str, Any]

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The whole config.

        Raises:
          UserError: there is no such file or setting, or a value is of another type.
        """
        return settings.read(self.file, self.overrides)

    @property
    def log(self) -> pathlib.Path:
        """The file that its output goes to."""
        return self.workdir / 'log.txt'

    @property
    def command(self) -> list[str]:
        """What starts it, or lets it go on, in the project's root."""
        changes = [f'--config.{path}={value}' for path, value in self.overrides.items()]
        main = ['-m', 'xception_flax.main', f'--config={self.file}', *changes]
        return [sys.executable, *main, f'--workdir={self.workdir}']

    def standing(self) -> Standing:
        """Looks into its folder how far it is."""
        return standing(self.workdir, self.config)


def standing(workdir: pathlib.Path, config: ConfigDict) -> Standing:
    """Looks how far the run in `workdir` is, which should be of this config."""
    records = writers.read(workdir / 'metrics.jsonl')
    bound: list[str] = []
    free: list[str] = []
    if (workdir / 'config.json').exists():
        stored = reading.from_json(workdir / 'config.json')
        config = config.copy_and_resolve_references()
        for number in ('num_classes', 'num_examples'):  # which a run takes from the data
            if config.dataset[number] is None:
                config.dataset[number] = stored.dataset[number]
        bound, free = workdirs.differences(stored, config)
    total = None
    if config.total_epochs is None or config.dataset.num_examples:
        total = Durations.resolve(config, config.dataset.num_examples or 0).total
    weights = 'averaged' if config.ema_decay else 'live'
    last = [r for r in records if r['step'] == total and r.get('weights') == weights]
    return Standing(
        step=max((r['step'] for r in records), default=0),
        total=total,
        results=last[-1] if last and not bound else None,
        done=bool(last and not bound and (workdir / 'checkpoints' / str(total)).is_dir()),
        changed=(*bound, *free),
    )


def runs(
    study: Study,
    workdir: pathlib.Path,
    seeds: tuple[int, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> list[Run]:
    """All runs of a study, one seed of each variant after the other.

    Args:
      study: the study.
      workdir: their folders are in it, such as 'xception/seed0'.
      seeds: in place of the study's.
      overrides: settings of all runs.
    """
    rounds = max(len(seeds or variant.seeds) for variant in study.variants)
    return [
        Run(
            f'{variant.name}/seed{chosen[i]}',
            workdir / variant.name / f'seed{chosen[i]}',
            variant.file,
            {**variant.overrides, **(overrides or {}), 'seed': chosen[i]},
        )
        for i in range(rounds)
        for variant in study.variants
        if i < len(chosen := seeds or variant.seeds)
    ]
