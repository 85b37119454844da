"""Durations in a run, given in steps, epochs, examples or percent of the total."""

import dataclasses
import math

from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.config.schema import UNITS, paths


@dataclasses.dataclass(frozen=True)
class Durations:
    """The durations of a run in steps; 0 for one that is not set.

    Intervals may be fractions: an epoch is seldom a whole number of steps.
    """

    total: int
    eval: float
    checkpoint: float
    log: float
    warmup: int
    decay: float

    @staticmethod
    def due(every: float, step: int) -> bool:
        """Whether `step` (from 1) completes another `every` steps."""
        return bool(every) and step // every > (step - 1) // every

    @classmethod
    def resolve(cls, config: ConfigDict, examples: int) -> 'Durations':
        """Converts the durations of a config to steps.

        Args:
          config: the run's config.
          examples: number of examples in the training split, the length of an epoch.

        Raises:
          UserError: a duration is given in two units, is not positive, or `total` is missing.
        """
        total = _steps(config, 'total', examples, 0)
        if not total:
            raise UserError(
                'config.total_steps is not set: give the length of the training, in any unit'
            )
        total = _whole(total)
        return cls(
            total=total,
            eval=_steps(config, 'eval', examples, total),
            checkpoint=_steps(config, 'checkpoint', examples, total),
            log=_steps(config, 'log', examples, total),
            warmup=_whole(_steps(config, 'schedule.warmup', examples, total)),
            decay=_steps(config, 'schedule.decay', examples, total),
        )


def _steps(config: ConfigDict, name: str, examples: int, total: int) -> float:
    in_steps = {
        'steps': 1.0,
        'epochs': examples / config.batch_size,
        'examples': 1 / config.batch_size,
        'percent': total / 100,
    }
    units = [unit for unit in UNITS if f'{name}_{unit}' in paths(config)]
    given = [unit for unit in units if config[f'{name}_{unit}'] is not None]
    if len(given) > 1:
        both = ' and '.join(f'config.{name}_{unit}' for unit in given)
        raise UserError(f'{both} are both set; keep one of them')
    if not given:
        return 0.0
    value = config[f'{name}_{given[0]}']
    if not 0 < value < math.inf:
        raise UserError(f'config.{name}_{given[0]} is {value}; it must be above 0, and finite')
    return value * in_steps[given[0]]


def _whole(steps: float) -> int:
    return max(1, round(steps)) if steps else 0
