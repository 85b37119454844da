"""Cost of the training step on TPU, as its compiler estimates it: this project beside Keras on JAX.

  pip install -e '.[bench,tpu]' && python -m experiments.benchmarks.tpu --output=tpu.json

All are compiled for the same slice with the same options, in bfloat16, from uint8 images to new
weights by SGD with momentum. No TPU is needed, and nothing is computed. Cycles are the sum of the
compiler's estimates for each operation, not a measurement; for select-and-scatter, the gradient of
max pooling, it gives no estimate; for our kernels they are the bundles that it schedules (see
`tpu_schedule`). Memory traffic is XLA's estimate.
"""

import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ |= {'JAX_PLATFORMS': 'cpu', 'KERAS_BACKEND': 'jax'}  # leaves accelerators alone

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import networks, turns
from xception_flax.analysis import cost, slices
from xception_flax.base import mesh as meshes
from xception_flax.ops import fused, separable
from xception_flax.runtime import program
from xception_flax.training.setup import set_up

MODELS = {'xception': 'Xception', 'inception_v3': 'InceptionV3'}  # our names and Keras's
flags.DEFINE_multi_enum('model', list(MODELS), list(MODELS), 'Networks to compile.')
flags.DEFINE_string('topology', 'v5e:2x2', 'The slice.')
flags.DEFINE_integer('batch', 128, 'Images per chip.', lower_bound=1)
flags.DEFINE_multi_string('option', [], 'A compiler option for all: NAME=VALUE.')
flags.DEFINE_string('output', None, 'A JSON file for all numbers.')


def main() -> None:
    """Compiles by the flags."""
    values, console = flags.FLAGS, Console()
    jax.config.update('jax_enable_compilation_cache', False)
    where = slices.describe(values.topology)
    batch = values.batch * where.mesh.size
    options = dict(text.split('=', 1) for text in values.option)
    packages = {'xception_flax': ('jax', 'flax', 'libtpu'), 'Keras': ('keras',)}
    versions = turns.installed(packages, console)
    results: dict[str, Any] = {'topology': values.topology, 'batch': batch, 'options': options}
    results['versions'] = versions
    for model in values.model:
        table = Table(
            model, 'M cycles', 'GB', 'TFLOP', 'GiB needed', 'compiled in, s',
            title=f'{values.topology}, {values.batch} images per chip, bfloat16',
        )  # fmt: skip
        results[model] = {}
        for name, lower in contenders(model, 'keras' in versions).items():
            began = time.perf_counter()
            found = cost.of(lower(where.mesh, batch).compile(compiler_options=options))
            took = time.perf_counter() - began
            results[model][name] = {
                'cycles': found.total_cycles, 'bytes': found.bytes, 'flops': found.flops,
                'memory': found.memory, 'seconds': took,
                'stages': dict(found.cycles_by(0)), 'kinds': dict(found.cycles_by(1)),
            }  # fmt: skip
            numbers = (
                found.total_cycles / 1e6, found.bytes / 1e9, found.flops / 1e12,
                found.memory / 2**30, took,
            )  # fmt: skip
            table.add_row(name, *(f'{number:.1f}' for number in numbers))
            console.print(f'{model}, {name}: {numbers[0]:.1f} M cycles, {took:.0f} s')
        console.print(table)
    turns.publish(results, console)


Lower = Callable[[Mesh, int], jax.stages.Lowered]


def contenders(model: str, with_keras: bool) -> dict[str, Lower]:
    """By name of each contender, the function that lowers its step for a mesh and a batch size."""

    def reference(mesh: Mesh, batch: int) -> jax.stages.Lowered:
        return ours(model, mesh, batch, lowering='reference')

    def without_kernels(mesh: Mesh, batch: int) -> jax.stages.Lowered:
        with mock.patch.object(fused, 'LEAST', 10**6):
            return ours(model, mesh, batch)

    def apart(mesh: Mesh, batch: int) -> jax.stages.Lowered:
        with mock.patch.object(separable, 'FOLD_TO', 0):
            return without_kernels(mesh, batch)

    found: dict[str, Lower] = {}
    if with_keras:
        found['Keras on JAX'] = lambda mesh, batch: keras(model, mesh, batch)
    found["lowering='reference'"] = reference
    if model == 'xception':
        found['depthwise and pointwise apart'] = apart
        found['without kernels'] = without_kernels
    found['xception_flax'] = lambda mesh, batch: ours(model, mesh, batch)
    return found


def ours(model: str, mesh: Mesh, batch: int, **overrides: Any) -> jax.stages.Lowered:
    """The step of `xception_flax.main`."""
    config = networks.config(model, batch, dtype='bfloat16', **overrides)
    run = set_up(config, mesh)
    images, labels = given(mesh, batch)
    return run.train_step.lower(run.abstract_state, {'image': images, 'label': labels})


def keras(model: str, mesh: Mesh, batch: int) -> jax.stages.Lowered:
    """The step of `Model.fit` with a network of `keras.applications`."""
    import keras

    keras.mixed_precision.set_global_policy('mixed_bfloat16')
    network = getattr(keras.applications, MODELS[model])(
        weights=None, classes=networks.CLASSES, classifier_activation=None
    )
    whole = keras.Sequential([keras.layers.Rescaling(1 / 127.5, -1), network])
    whole.compile(
        keras.optimizers.SGD(networks.LEARNING_RATE, momentum=networks.MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    whole.build((None, networks.SIZE, networks.SIZE, 3))
    whole.optimizer.build(whole.trainable_variables)
    replicated, sharded = meshes.replicated(mesh), meshes.sharded(mesh)
    state = tuple(
        [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated) for x in variables]
        for variables in (
            whole.trainable_variables,
            whole.non_trainable_variables,
            whole.optimizer.variables,
            whole.metrics_variables,
        )
    )
    step = jax.jit(
        whole.train_step,
        in_shardings=(replicated, sharded),
        out_shardings=replicated,
        donate_argnums=0,
    )
    return step.lower(state, given(mesh, batch))


def given(mesh: Mesh, batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Abstract images and labels."""
    sharded = meshes.sharded(mesh)
    return (
        jax.ShapeDtypeStruct((batch, networks.SIZE, networks.SIZE, 3), jnp.uint8, sharding=sharded),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=sharded),
    )


if __name__ == '__main__':
    program.run(main, alone=True)
