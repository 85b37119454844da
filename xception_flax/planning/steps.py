"""Compiles a config's steps for a slice; no array is made."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xception_flax.data import sources
from xception_flax.planning import cost
from xception_flax.planning.chips import Slice
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime.errors import UserError
from xception_flax.training.setup import Run, set_up


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that is compiled, or that does not fit.

    Attributes:
      cost: per device; None if the compiler found no place for it.
      pictures: that the cost is of, on all devices: one micro-batch, or one crop of each.
      needed: bytes of memory that it needs, per device.
      advice: what would fit, in words; '' if it fits.
    """

    cost: cost.Cost | None
    pictures: float
    needed: float
    advice: str = ''


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config would do on a slice.

    Attributes:
      config: the checked config.
      slice: the chips.
      parameters: number of those that are trained.
      training: the training step.
      evaluation: the evaluation step of as many pictures.
    """

    config: ConfigDict
    slice: Slice
    parameters: int
    training: Step
    evaluation: Step

    def seconds(self, found: cost.Cost) -> float:
        """The compiler's estimate of the time."""
        return found.total_cycles / self.slice.chip.clock

    def bound(self, found: cost.Cost) -> tuple[float, str]:
        """The time by the roofline, in seconds, and what bounds it."""
        chip = self.slice.chip
        times = {'computing': found.flops / chip.flops, 'memory': found.bytes / chip.bandwidth}
        bound = max(times, key=lambda kind: times[kind])
        return times[bound], bound


def make(config: ConfigDict, where: Slice) -> Plan:
    """Compiles the training and the evaluation step of a config for a slice.

    The data set need not be there: of it, only the number of classes counts
    (`sources.num_classes`).

    Raises:
      UserError: a setting cannot work.
    """
    config = config.copy_and_resolve_references()
    classes = sources.num_classes(config)
    several = (classes,) if config.loss == 'sigmoid' else ()  # classes of a picture
    with config.unlocked():
        config.dataset.num_classes = classes
        config.dataset.source = 'synthetic'
        config.dataset.train_split, config.dataset.eval_split = 'train', 'validation'
        config.dataset.class_weights = config.init.weights = ''
    run = set_up(config, where.mesh)
    split = meshes.split(where.mesh)
    crops = (config.crops,) if config.crops > 1 else ()
    picture = (config.image_size, config.image_size, 3)

    def array(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    batch = {
        'image': array((config.batch_size, *picture), jnp.uint8),
        'label': array((config.batch_size, *several), jnp.int32),
    }
    evaluated = batch | {
        'image': array((config.batch_size, *crops, *picture), jnp.uint8),
        'mask': array((config.batch_size,), jnp.float32),
    }
    variables = run.abstract_state.variables('live')
    return Plan(
        config=run.config,
        slice=where,
        parameters=sum(x.size for x in jax.tree.leaves(run.abstract_state.params)),
        training=_compile(run.train_step, (run.abstract_state, batch), run, config.accumulation),
        evaluation=_compile(run.eval_step, (variables, evaluated), run, config.crops),
    )


def _compile(step: Any, arguments: tuple, run: Run, parts: int) -> Step:
    """Compiles a step that works through its pictures in so many parts, one after the other."""
    pictures = run.config.batch_size / parts
    try:
        found = cost.of(step.lower(*arguments).compile())
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r'Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm', str(error))
        if not used:
            raise UserError(f'the compiler failed: {str(error).splitlines()[0]}') from error
        unit = {'K': 2**10, 'M': 2**20, 'G': 2**30}
        needed, there = (float(used[i]) * unit[used[i + 1]] for i in (1, 3))
        split = run.config.accumulation if step is run.train_step else 0
        advice = advise(run.config, run.mesh.size, split, needed / there)
        return Step(None, pictures, needed, advice)
    return Step(found, pictures, found.memory)


def advise(config: ConfigDict, devices: int, accumulation: int, excess: float) -> str:
    """What to change where a step needs more memory than there is.

    What it needs is taken to grow with the pictures that are worked on at once.

    Args:
      config: the run's config.
      devices: how many there are.
      accumulation: into how many micro-batches the step splits its batch; 0 if it does not.
      excess: how many times the memory that there is it needs.
    """
    share = config.batch_size // devices // (accumulation or 1)  # of a device at once
    most = 0.95 / excess * share
    advice = []
    fits = [n for n in range(1, share) if share % n == 0 and n <= most]
    if accumulation and fits:
        advice.append(f'--config.accumulation={accumulation * share // max(fits)}')
    group = config[config.model].get('bn_group_size', 0) or 1
    multiple = math.lcm(devices, group)
    at_once = math.floor(most * devices / multiple) * multiple
    if at_once:
        advice.append(f'--config.batch_size={at_once * (accumulation or 1)}')
    return f'try {", or ".join(advice)}' if advice else 'not even one picture a device may fit'
