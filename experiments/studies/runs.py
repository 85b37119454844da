"""The runs of a study: their settings, their commands, and how far they are."""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies.study import Study
from xception_flax.config import Durations, reading
from xception_flax.runtime import workdirs, writers
from xception_flax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a run is, by what is in its folder.

    Attributes:
      step: the last one that it has recorded.
      total: how many there are to be; None where that takes the data and a first checkpoint.
      done: whether the last one is saved and evaluated.
      changed: settings with which it was trained and that are others now, in words.
    """

    step: int
    total: int | None
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
      config: its config file.
      overrides: settings that differ from the file, the seed among them.
    """

    name: str
    workdir: pathlib.Path
    config: str
    overrides: Mapping[str, Any]

    @functools.cached_property
    def settings(self) -> ConfigDict:
        """The whole config.

        Raises:
          UserError: there is no such file or setting, or a value is of another type.
        """
        config = reading.read_file(str(ROOT / self.config))
        reading.check_keys(list(self.overrides))
        for path, value in self.overrides.items():
            try:
                config.update_from_flattened_dict({path: value})
            except (TypeError, ValueError) as error:
                raise UserError(f'config.{path} cannot be {value!r}: {error}') from error
        reading.override_units(config, list(self.overrides))
        return config

    @property
    def log(self) -> pathlib.Path:
        """The file that its output goes to."""
        return self.workdir / 'log.txt'

    @property
    def command(self) -> list[str]:
        """What starts it, or lets it go on, in the project's root."""
        changes = [f'--config.{path}={value}' for path, value in self.overrides.items()]
        main = ['-m', 'xception_flax.main', f'--config={self.config}', *changes]
        return [sys.executable, *main, f'--workdir={self.workdir}']

    def standing(self) -> Standing:
        """Looks into its folder how far it is."""
        records = writers.read(self.workdir / 'metrics.jsonl')
        saved = max(_checkpoints(self.workdir), default=0)
        total = self._total(saved)
        weights = 'averaged' if self.settings.ema_decay else 'live'
        evaluated = {r['step'] for r in records if r.get('weights') == weights}
        bound, free = self._differences()
        return Standing(
            step=max((r['step'] for r in records), default=0),
            total=total,
            done=total is not None and saved >= total and saved in evaluated and not bound,
            changed=(*bound, *free),
        )

    def _total(self, saved: int) -> int | None:
        if self.settings.total_epochs is None:
            return Durations.resolve(self.settings, 0).total
        if not saved:
            return None
        progress = self.workdir / 'checkpoints' / str(saved) / 'progress' / 'metadata'
        examples = json.loads(progress.read_text())['examples']
        return Durations.resolve(self.settings, examples).total

    def _differences(self) -> tuple[list[str], list[str]]:
        path = self.workdir / 'config.json'
        if not path.exists():
            return [], []
        stored, config = reading.from_json(path), self.settings.copy_and_resolve_references()
        if config.dataset.num_classes is None:  # then a run takes it from the data
            config.dataset.num_classes = stored.dataset.num_classes
        return workdirs.differences(stored, config)


def _checkpoints(workdir: pathlib.Path) -> list[int]:
    return [int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()]


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
            variant.config,
            {**variant.overrides, **(overrides or {}), 'seed': chosen[i]},
        )
        for i in range(rounds)
        for variant in study.variants
        if i < len(chosen := seeds or variant.seeds)
    ]
