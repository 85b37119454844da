"""Evaluates weights on a whole split, every example once."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.data import class_weights, imagenet_sets, pipeline
from xception_flax.data.reader import Reader
from xception_flax.data.sources import Source
from xception_flax.runtime import hosts
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime.progress import Progress
from xception_flax.runtime.stopping import StopSignals
from xception_flax.training import metrics
from xception_flax.training.step import make_eval_step

EvalStep = Callable[[Any, dict], dict[str, Any]]


def compiled_step(model: nn.Module, config: ConfigDict, mesh: Mesh, source: Source) -> EvalStep:
    """`make_eval_step` for a split, jitted: variables on every device, the batch split over them.

    Raises:
      UserError: the file of class weights cannot be read, or is not of the split's classes.
    """
    everywhere = meshes.replicated(mesh)
    weights = class_weights.load(config, source)
    subset = imagenet_sets.classes(config.dataset.name) if config.dataset.source == 'tfds' else ()
    platform = mesh.devices.flat[0].platform
    return jax.jit(
        make_eval_step(model, config, weights, subset, platform),
        in_shardings=(everywhere, meshes.split(mesh)),
        out_shardings=everywhere,
        compiler_options=ops.forward_options(platform),
    )


def evaluate(
    eval_step: EvalStep,
    variables: dict[str, Any],
    reader: Reader,
    config: ConfigDict,
    mesh: Mesh,
    progress: Progress,
    stop: StopSignals | None = None,
) -> dict[str, dict[str, float]]:
    """Measures several sets of weights in one pass over the data.

    Args:
      eval_step: of `compiled_step`.
      variables: the model's variables, by the name of the weights.
      reader: of the split.
      config: the run's config.
      mesh: the devices.
      progress: shows how far it is.
      stop: when it is requested, all hosts give up at the same batch.

    Returns:
      For each set of weights: 'top1', 'top5', 'loss' and the number of 'examples', and that of
      'unreadable' and 'unlabelled' ones if there are any. Where pictures are of several classes,
      'map100_pictures' and 'map100_classes', the two readings of MAP@100; where only some classes
      occur, 'top1_subset' and 'top5_subset'. Nothing if it was given up.
    """
    local = pipeline.evaluation_batches(reader, config, jax.process_index(), jax.process_count())
    batches = meshes.global_batches(mesh, local, stop)
    count = -(-len(reader) // config.batch_size)
    sums: dict[str, Any] = dict.fromkeys(variables)
    pooled = {weights: metrics.PooledRankings() for weights in variables}
    for batch in progress.over(batches, count, f'evaluating {config.dataset.eval_split}'):
        before = jax.block_until_ready(dict(sums))  # so that batches do not pile up on the devices
        for weights, values in variables.items():
            new, old = eval_step(values, batch), before[weights]
            if 'ranking' in new:
                pooled[weights].add(new.pop('ranking'))
            sums[weights] = new if old is None else jax.tree.map(lambda a, b: a + b, old, new)
        if hosts.stop_agreed(stop, next(iter(before.values()))):
            return {}

    results = {}
    for weights, total in sums.items():
        values = {name: float(value) for name, value in jax.device_get(total).items()}
        values.pop('stop', None)
        left_out = {k: round(values.pop(k, 0)) for k in ('unreadable', 'unlabelled')}
        examples = round(values.pop('examples'))
        seen = examples + sum(left_out.values())
        assert seen == len(reader), f'evaluated {seen} of {len(reader)} examples'
        maps = {}
        if 'ap100' in values:
            maps['map100_pictures'] = values.pop('ap100') / max(values.pop('weighted'), 1)
            maps['map100_classes'] = pooled[weights].mean_average_precision(
                class_weights.load(config, reader.source)
            )
        results[weights] = {name: value / max(examples, 1) for name, value in values.items()}
        results[weights] |= maps | {'examples': examples}
        results[weights] |= {name: number for name, number in left_out.items() if number}
    return results
