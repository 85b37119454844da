"""What runs have left in their folders."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import ACCURACY, MAP, runs
from experiments.studies.study import Study, Variant
from xception_flax.config import reading
from xception_flax.runtime import writers
from xception_flax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Seed:
    """One run.

    Attributes:
      standing: how far it is.
      records: all of its metrics.
    """

    standing: runs.Standing
    records: list[writers.Record]

    def curve(self, metric: str) -> dict[int, float]:
        """A metric's evaluations by step, of the averaged weights where there are any."""
        found = [r for r in self.records if 'weights' in r and metric in r]
        return {r['step']: r[metric] for r in found}  # averaged ones come after live ones


@dataclasses.dataclass(frozen=True)
class Measured:
    """A variant with its runs.

    Attributes:
      variant: what was to be run.
      seeds: what was, by the seed; those that have not begun are there, too.
      config: of its first seed; the number of classes is filled in if it is known.
    """

    variant: Variant
    seeds: dict[int, Seed]
    config: ConfigDict

    def results(self, metric: str) -> dict[int, float]:
        """The final values of a metric by the seed, of runs that are through."""
        return {
            seed: run.standing.results[metric]
            for seed, run in self.seeds.items()
            if run.standing.results is not None and metric in run.standing.results
        }

    @property
    def begun(self) -> bool:
        """Whether any of its runs has recorded a step."""
        return any(run.standing.step for run in self.seeds.values())


def of_study(study: Study, workdir: pathlib.Path) -> list[Measured]:
    """The runs of a study in `workdir`, also of more seeds than it has."""
    found = []
    for variant in study.variants:
        extra = (int(p.name[4:]) for p in (workdir / variant.name).glob('seed*[0-9]'))
        seeds = tuple(sorted({*variant.seeds, *extra}))
        one = dataclasses.replace(study, variants=(dataclasses.replace(variant, seeds=seeds),))
        chosen = runs.runs(one, workdir)
        config = chosen[0].config
        classes = filter(None, (_classes(run.workdir) for run in chosen))
        config.dataset.num_classes = next(classes, study.num_classes)
        begun = {s: _seed(r.workdir, r.config) for s, r in zip(seeds, chosen, strict=True)}
        found.append(Measured(variant, begun, config))
    return found


def of_folder(folder: pathlib.Path) -> list[Measured]:
    """All runs in a folder, or the one that it is; NAME/seedN are the seeds of NAME.

    Raises:
      UserError: it holds no run.
    """
    by_name: dict[str, dict[int, pathlib.Path]] = {}
    for path in sorted(folder.rglob('config.json')):
        workdir = path.parent
        seed = reading.from_json(path).seed
        of_several = workdir.name == f'seed{seed}' and workdir != folder
        named = workdir.parent if of_several else workdir
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
                {seed: _seed(w, configs[seed]) for seed, w in sorted(workdirs.items())},
                configs[min(configs)],
            )
        )
    return found


def speed(workdir: pathlib.Path) -> dict[str, Any]:
    """What experiments.speed has measured there; nothing if it has not."""
    path = workdir / 'speed.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _seed(workdir: pathlib.Path, config: ConfigDict) -> Seed:
    records = writers.read(workdir / 'metrics.jsonl')
    return Seed(runs.standing(workdir, config), records)


def _classes(workdir: pathlib.Path) -> int | None:
    path = workdir / 'config.json'
    return reading.from_json(path).dataset.num_classes if path.exists() else None


def metrics(measured: Sequence[Measured]) -> dict[str, str]:
    """What the evaluations of runs measured, with what to call it."""
    records = [r for one in measured for seed in one.seeds.values() for r in seed.records]
    found = dict.fromkeys(key for r in records if 'weights' in r for key in r)
    known = {**MAP, **ACCURACY}
    return {key: known.get(key, key) for key in found if key in known or key.startswith('map100')}
