"""Reads the results of runs from their folders."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import trials
from experiments.studies.study import Study, Variant
from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.runtime import writers
from xception_flax.training import metrics as training_metrics

HELD_OUT = 'held_out.json'  # of a run: see `Study.held_out`


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What one run has recorded.

    Attributes:
      standing: how far the run is.
      entries: all lines of its metrics.jsonl.
      results: the metrics that count; None if there are none yet.
    """

    standing: trials.Standing
    entries: list[writers.Entry]
    results: writers.Entry | None

    def final(self, metric: str) -> float | None:
        """A metric's value that counts, of a finished run, or None."""
        results = self.results or {}
        return float(results[metric]) if metric in results else None  # NaN is written as a string

    def curve(self, metric: str) -> dict[int, float]:
        """A metric's evaluations by step, of the averaged weights if there are any."""
        found = [entry for entry in self.entries if 'weights' in entry and metric in entry]
        # Those of averaged weights come after those of live ones.
        return {entry['step']: float(entry[metric]) for entry in found}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A variant with its runs.

    Attributes:
      variant: the settings.
      runs: what each run has recorded, by seed; also runs that have not begun.
      config: config of the first seed, with the number of classes if it is known.
    """

    variant: Variant
    runs: dict[int, Recorded]
    config: ConfigDict

    def results(self, metric: str) -> dict[int, float]:
        """A metric's final values by seed, of finished runs."""
        found = {seed: run.final(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def begun(self) -> bool:
        """Whether any of its runs has recorded a step."""
        return any(run.standing.step for run in self.runs.values())


def of_study(study: Study, workdir: paths.Path) -> list[Measured]:
    """The runs of a study in `workdir`, with those of seeds that the study does not name."""
    found = []
    for variant in study.variants:
        extra = (int(p.name[4:]) for p in (workdir / variant.name).glob('seed*[0-9]'))
        seeds = tuple(sorted({*variant.seeds, *extra}))
        one = dataclasses.replace(study, variants=(dataclasses.replace(variant, seeds=seeds),))
        chosen = trials.trials(one, workdir)
        config = chosen[0].config
        classes = filter(None, (_classes(trial.workdir) for trial in chosen))
        config.dataset.num_classes = next(classes, study.num_classes)
        runs = {
            seed: _recorded(trial.workdir, trial.config, bool(study.held_out))
            for seed, trial in zip(seeds, chosen, strict=True)
        }
        found.append(Measured(variant, runs, config))
    return found


def of_folder(folder: paths.Path) -> list[Measured]:
    """All runs in a folder, or the run that it is; NAME/seedN are the seeds of NAME.

    Raises:
      UserError: the folder holds no run.
    """
    by_name: dict[str, dict[int, paths.Path]] = {}
    for path in (file for file in paths.below(folder) if file.name == 'config.json'):
        workdir = path.parent
        seed = reading.from_json(path).seed
        one_of_several = workdir.name == f'seed{seed}' and workdir != folder
        named = workdir.parent if one_of_several else workdir
        name = named.name if named == folder else str(named.relative_to(folder))
        by_name.setdefault(name, {})[seed] = workdir
    if not by_name:
        raise UserError(f'there is no run in {folder}: none of its folders has a config.json')
    found = []
    for name, workdirs in by_name.items():
        configs = {seed: reading.from_json(w / 'config.json') for seed, w in workdirs.items()}
        found.append(
            Measured(
                Variant(name, name, file=''),
                {seed: _recorded(w, configs[seed]) for seed, w in sorted(workdirs.items())},
                configs[min(configs)],
            )
        )
    return found


def metrics(measured: Sequence[Measured]) -> tuple[str, ...]:
    """The names of all metrics that the runs have evaluated.

    The metric that chose the best checkpoints (`config.best`) comes first, as the report draws and
    compares it; the others are in the order of `METRICS`.
    """
    entries = [entry for one in measured for run in one.runs.values() for entry in run.entries]
    found = {name for entry in entries if 'weights' in entry for name in entry}
    names = [metric.name for metric in training_metrics.METRICS if metric.name in found]
    best = measured[0].config.best
    return tuple(sorted(names, key=lambda name: name != best))


def speed(workdir: paths.Path) -> dict[str, Any]:
    """The results of experiments.speed in a folder; empty if there are none."""
    path = workdir / 'speed.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _recorded(workdir: paths.Path, config: ConfigDict, held_out: bool = False) -> Recorded:
    entries, standing = writers.read(workdir / 'metrics.jsonl'), trials.standing(workdir, config)
    results = standing.results
    if held_out:
        file = workdir / HELD_OUT
        results = json.loads(file.read_text()) if results and file.exists() else None
    return Recorded(standing, entries, results)


def _classes(workdir: paths.Path) -> int | None:
    path = workdir / 'config.json'
    return reading.from_json(path).dataset.num_classes if path.exists() else None
