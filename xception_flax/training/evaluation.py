"""Evaluates weights on a whole split, every example once."""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.base import mesh as meshes
from xception_flax.base import processes
from xception_flax.base.signals import StopSignals
from xception_flax.data import class_weights, imagenet_sets, pipeline
from xception_flax.data.reader import Reader
from xception_flax.data.sources import Source
from xception_flax.runtime.progress import Progress
from xception_flax.training.metrics import Sums, Task
from xception_flax.training.step import make_eval_step

EvalStep = Callable[[Any, dict], dict[str, Any]]


def task_of(config: ConfigDict, source: Source) -> Task:
    """What an evaluation on `source` is of; a `UserError` if the class weights do not fit it."""
    subset = imagenet_sets.classes(config.dataset.name) if config.dataset.source == 'tfds' else ()
    return Task(config.loss, class_weights.load(config, source), subset)


def compiled_step(model: nn.Module, config: ConfigDict, mesh: Mesh, task: Task) -> EvalStep:
    """Makes the jitted `make_eval_step`: variables replicated, the batch sharded."""
    return jax.jit(
        make_eval_step(model, config, task, mesh),
        in_shardings=(meshes.replicated(mesh), meshes.sharded(mesh)),
        out_shardings=meshes.replicated(mesh),
        compiler_options=ops.forward_options(mesh.devices.flat[0].platform),
    )


def evaluate(
    eval_step: EvalStep,
    variables: dict[str, Any],
    reader: Reader,
    config: ConfigDict,
    mesh: Mesh,
    progress: Progress,
    task: Task,
    stop: StopSignals | None = None,
) -> dict[str, dict[str, float]]:
    """Measures several sets of weights, `variables` by their name, in one pass over the data.

    When a stop is requested, all processes give up at the same batch.

    Returns:
      For each set of weights the value of each metric, and the number of 'examples', and of
      'unreadable' and 'unlabelled' ones if there are any; {} if it was given up.
    """
    local = pipeline.evaluation_batches(reader, config, jax.process_index(), jax.process_count())
    count = -(-len(reader) // config.batch_size)
    sums = {weights: Sums() for weights in variables}
    counts: Any = None
    done: dict[str, Any] | None = None
    with contextlib.closing(local):
        batches = meshes.global_batches(mesh, local, stop)
        for batch in progress.over(batches, count, f'evaluating {config.dataset.eval_split}'):
            for total in sums.values():
                total.block_until_ready()  # so that batches do not pile up on the devices
            if processes.stop_agreed(stop, done):
                return {}
            for weights, values in variables.items():
                done = eval_step(values, batch)
                sums[weights].add(done['metrics'])
            assert done is not None
            new = done['counts']  # the same for all weights
            counts = new if counts is None else jax.tree.map(jnp.add, counts, new)

    numbers = {name: int(value) for name, value in jax.device_get(counts).items()}
    assert sum(numbers.values()) == len(reader), f'evaluated {numbers} of {len(reader)} examples'
    examples = numbers.pop('examples')
    left_out = {name: number for name, number in numbers.items() if number}
    return {
        weights: {**total.compute(task), 'examples': examples, **left_out}
        for weights, total in sums.items()
    }
