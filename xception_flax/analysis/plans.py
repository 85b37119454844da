"""Compiles the steps of a config for a slice; no array is made."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xception_flax.analysis import cost
from xception_flax.analysis.slices import Slice
from xception_flax.base import mesh as meshes
from xception_flax.base.errors import UserError
from xception_flax.data import sources
from xception_flax.training.setup import Run, set_up


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step, or one that does not fit.

    Attributes:
      cost: per device; None if it does not fit into memory.
      images: number processed at once, on all devices: a micro-batch, or one crop of each.
      needed: bytes of memory per device; an estimate if it does not fit.
      advice: settings that would fit; '' if it fits.
    """

    cost: cost.Cost | None
    images: float
    needed: float
    advice: str = ''


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a config on a slice.

    Attributes:
      config: the checked config.
      slice: the chips.
      parameters: number of trainable parameters.
      training: the training step.
      evaluation: the evaluation step of the same batch size.
    """

    config: ConfigDict
    slice: Slice
    parameters: int
    training: Step
    evaluation: Step

    def seconds(self, found: cost.Cost) -> float:
        """The estimate of the compiler, in seconds."""
        return found.total_cycles / self.slice.chip.clock

    def bound(self, found: cost.Cost) -> tuple[float, str]:
        """The time by the roofline, in seconds, and what bounds it."""
        chip = self.slice.chip
        times = {'computing': found.flops / chip.flops, 'memory': found.bytes / chip.bandwidth}
        bound = max(times, key=lambda kind: times[kind])
        return times[bound], bound


def make(config: ConfigDict, where: Slice) -> Plan:
    """Compiles the training and the evaluation step of a config for a slice.

    The data set need not be there: only its number of classes counts (`sources.num_classes`).

    Raises:
      UserError: a setting cannot work.
    """
    config = config.copy_and_resolve_references()
    classes = sources.num_classes(config)
    labels = (classes,) if config.loss == 'sigmoid' else ()  # per image
    with config.unlocked():
        config.dataset.num_classes = classes
        config.dataset.source = 'synthetic'
        config.dataset.train_split, config.dataset.eval_split = 'train', 'validation'
        config.dataset.class_weights = config.init.weights = ''
        config.best = 'loss'  # applies to any data
    run = set_up(config, where.mesh)
    sharding = meshes.sharded(where.mesh)
    crops = (config.crops,) if config.crops > 1 else ()
    image = (config.image_size, config.image_size, 3)

    def array(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batch = {
        'image': array((config.batch_size, *image), jnp.uint8),
        'label': array((config.batch_size, *labels), jnp.int32),
    }
    evaluated = batch | {
        'image': array((config.batch_size, *crops, *image), jnp.uint8),
        'mask': array((config.batch_size,), jnp.float32),
    }
    variables = run.abstract_state.variables('live')
    return Plan(
        config=run.config,
        slice=where,
        parameters=sum(x.size for x in jax.tree.leaves(run.abstract_state.params)),
        training=_compile(run.train_step, (run.abstract_state, batch), run, where),
        evaluation=_compile(run.eval_step, (variables, evaluated), run, where),
    )


def _compile(step: Any, arguments: tuple, run: Run, where: Slice) -> Step:
    """Compiles a step; if it does not fit, smaller batches, to find out what would."""
    config = run.config
    accumulation = config.accumulation if step is run.train_step else 0
    images = config.batch_size / (accumulation or config.crops)
    if found := _cost(step, arguments):
        return Step(found, images, found.memory)
    # Memory is linear in the batch: two that fit tell how much the whole one needs.
    multiple = _multiple(config, run.mesh.size) * (accumulation or 1)
    size, fitting = config.batch_size, dict[int, int]()
    while len(fitting) < 2 and (size := size // 2 // multiple * multiple):
        if found := _cost(step, _of_batch(arguments, size)):
            fitting[size] = found.memory
    if not fitting:
        return Step(None, images, where.chip.memory, 'not even the smallest batch fits')
    (larger, more), (smaller, less) = [*fitting.items(), (0, 0)][:2]
    needed = more + (more - less) / (larger - smaller) * (config.batch_size - larger)
    advice = advise(config, run.mesh.size, accumulation, needed / where.chip.memory)
    return Step(None, images, needed, advice)


def _cost(step: Any, arguments: tuple) -> cost.Cost | None:
    """The cost of a step, or None if it does not fit into memory."""
    try:
        return cost.of(step.lower(*arguments).compile())
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' in str(error):
            return None
        raise UserError(f'the compiler failed: {str(error).splitlines()[0]}') from error


def _of_batch(arguments: tuple, size: int) -> tuple:
    """The arguments of a step with another batch size."""
    first, batch = arguments
    smaller = {
        name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for name, x in batch.items()
    }
    return first, smaller


def _multiple(config: ConfigDict, devices: int) -> int:
    """What the images processed at once have to be a multiple of."""
    return math.lcm(devices, config[config.model].get('bn_group_size', 0) or 1)


def advise(config: ConfigDict, devices: int, accumulation: int, excess: float) -> str:
    """What to change where a step needs `excess` times the memory there is.

    Assumes that memory grows in proportion to the images processed at once; `accumulation` is the
    number of micro-batches, 0 if the step has none.
    """
    each = config.batch_size // devices // (accumulation or 1)  # images per device at once
    most = 0.95 / excess * each
    advice = []
    fits = [n for n in range(1, each) if each % n == 0 and n <= most]
    if accumulation and fits:
        advice.append(f'--config.accumulation={accumulation * each // max(fits)}')
    multiple = _multiple(config, devices)
    at_once = math.floor(most * devices / multiple) * multiple
    if at_once:
        advice.append(f'--config.batch_size={at_once * (accumulation or 1)}')
    return f'try {", or ".join(advice)}' if advice else 'even one image per device may not fit'
