"""Evaluates weights on a whole split, every example once."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax.data import pipeline
from xception_flax.data.sources import Source
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime.progress import Progress


def evaluate(
    eval_step: Callable[[Any, dict], dict],
    variables: dict[str, Any],
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Measures several sets of weights in one pass over the data.

    Args:
      eval_step: a jitted step of `make_eval_step`.
      variables: the model's variables, by the name of the weights.
      source: the split.
      config: the run's config.
      mesh: the devices.
      progress: shows how far it is.

    Returns:
      For each set of weights: 'top1', 'top5', 'loss' and the number of 'examples'.
    """
    local = pipeline.evaluation_batches(source, config, jax.process_index(), jax.process_count())
    batches = meshes.global_batches(mesh, local)
    count = -(-len(source) // config.batch_size)
    sums: dict[str, Any] = {}
    for batch in progress.over(batches, count, f'evaluating {config.dataset.eval_split}'):
        for weights, values in variables.items():
            new = eval_step(values, batch)
            old = sums.get(weights)
            sums[weights] = new if old is None else jax.tree.map(lambda a, b: a + b, old, new)

    results = {}
    for weights in variables:  # not sums: JAX sorts the keys of dictionaries
        total = jax.device_get(sums[weights])
        examples = int(total.pop('examples'))
        assert examples == len(source), f'evaluated {examples} of {len(source)} examples'
        means = {name: float(value) / examples for name, value in total.items()}
        results[weights] = {**means, 'examples': examples}
    return results
