"""The runs of a study: the settings, the command and the state of each."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import settings
from experiments.studies.study import Study
from xception_flax.base import paths
from xception_flax.config import Durations, reading
from xception_flax.runtime import workdirs, writers
from xception_flax.training import metrics


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a run is, as the files in its folder tell.

    Attributes:
      step: last step recorded.
      total: number of steps to do; None before a run has recorded the number of examples.
      results: evaluation of the last step, of the averaged weights if there are any; None before
        it.
      done: whether the last step is evaluated and saved.
      changed: settings that differ from those of the run, each as 'setting: old -> new'.
    """

    step: int
    total: int | None
    results: writers.Entry | None
    done: bool
    changed: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Fraction of the steps that are done."""
        return min(self.step / self.total, 1.0) if self.total else 0.0

    def __str__(self) -> str:
        if self.done:
            differing = f'; changed since: {", ".join(self.changed)}' if self.changed else ''
            return f'done, {self.step:,} steps{differing}'
        total = f' of {self.total:,}' if self.total else ''
        return f'at step {self.step:,}{total}' if self.step else 'not started'


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A run that a study asks for: one variant with one seed.

    Attributes:
      name: such as 'xception/seed0'.
      workdir: folder of the run.
      file: its config file.
      overrides: settings that differ from the file, the seed among them.
    """

    name: str
    workdir: paths.Path
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
    def log(self) -> paths.Path:
        """File of its output."""
        return self.workdir / 'log.txt'

    @property
    def command(self) -> list[str]:
        """The command that starts or resumes it, in the root of the project."""
        changes = [f'--config.{path}={value}' for path, value in self.overrides.items()]
        main = ['-m', 'xception_flax.main', f'--config={self.file}', *changes]
        return [sys.executable, *main, f'--workdir={self.workdir}']

    def standing(self) -> Standing:
        """Reads from its folder how far it is."""
        return standing(self.workdir, self.config)


def standing(workdir: paths.Path, config: ConfigDict) -> Standing:
    """Reads from a run's folder how far the run is; it counts only if it has this config."""
    entries = writers.read(workdir / 'metrics.jsonl')
    bound: list[str] = []
    free: list[str] = []
    if (workdir / 'config.json').exists():
        stored = reading.from_json(workdir / 'config.json')
        config = config.copy_and_resolve_references()
        for number in ('num_classes', 'num_examples'):  # a run takes them from its data
            if config.dataset[number] is None:
                config.dataset[number] = stored.dataset[number]
        bound, free = workdirs.differences(stored, config)
    total = None
    if config.total_epochs is None or config.dataset.num_examples:
        total = Durations.resolve(config, config.dataset.num_examples or 0).total
    weights = 'averaged' if config.ema_decay else 'live'
    evaluations = [r for r in entries if r.get('weights') == weights]
    if metrics.exhausted([metrics.score(config.best, r) for r in evaluations], config.patience):
        total = evaluations[-1]['step']
    last = [r for r in evaluations if r['step'] == total]
    return Standing(
        step=max((r['step'] for r in entries), default=0),
        total=total,
        results=last[-1] if last and not bound else None,
        done=bool(last and not bound and (workdir / 'checkpoints' / str(total)).is_dir()),
        changed=(*bound, *free),
    )


def trials(
    study: Study,
    workdir: paths.Path,
    seeds: tuple[int, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """All runs of a study: the first seed of each variant, then the second, and so on.

    Args:
      study: the study.
      workdir: folder of their folders, such as 'xception/seed0'.
      seeds: seeds of every variant, in place of the study's.
      overrides: settings of all runs.
    """
    rounds = max(len(seeds or variant.seeds) for variant in study.variants)
    return [
        Trial(
            f'{variant.name}/seed{chosen[i]}',
            workdir / variant.name / f'seed{chosen[i]}',
            variant.file,
            {**variant.overrides, **(overrides or {}), 'seed': chosen[i]},
        )
        for i in range(rounds)
        for variant in study.variants
        if i < len(chosen := seeds or variant.seeds)
    ]
