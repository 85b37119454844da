"""Training steps for a TPU by the account of its compiler: this project beside Keras on JAX.

  pip install -e '.[bench,tpu]' && python -m experiments.benchmarks.tpu --output=tpu.json

All are compiled for the same slice in the same way, in bfloat16, from the bytes of pictures to new
weights by SGD with momentum. No TPU is needed, and nothing is computed. Cycles are the compiler's
own estimates for each operation, added up: no measurement, and in anybody's step there is none for
select-and-scatter, the gradient of max pooling. Memory traffic is XLA's estimate.
"""

import os
import sys
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
from xception_flax.ops import separable
from xception_flax.planning import chips, cost
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime.errors import UserError
from xception_flax.training.setup import set_up

MODELS = {'xception': 'Xception', 'inception_v3': 'InceptionV3'}  # and Keras's names
flags.DEFINE_multi_enum('model', list(MODELS), list(MODELS), 'What to compile.')
flags.DEFINE_string('topology', 'v5e:2x2', 'The slice.')
flags.DEFINE_integer('batch', 128, 'Pictures on each chip.', lower_bound=1)
flags.DEFINE_multi_string('option', [], "A compiler option for all: 'NAME=VALUE'.")
flags.DEFINE_string('output', None, 'A JSON file for all numbers.')


def main() -> None:
    """Compiles by the flags."""
    values, console = flags.FLAGS, Console()
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        where = chips.describe(values.topology)
    except UserError as error:
        sys.exit(f'error: {error}')
    batch = values.batch * where.mesh.size
    options = dict(text.split('=', 1) for text in values.option)
    packages = {'xception_flax': ('jax', 'flax', 'libtpu'), 'Keras': ('keras',)}
    versions = turns.installed(packages, console)
    results: dict[str, Any] = {'topology': values.topology, 'batch': batch, 'options': options}
    results['versions'] = versions
    for model in values.model:
        table = Table(
            model, 'M cycles', 'GB', 'TFLOP', 'GiB needed', 'compiled in, s',
            title=f'{values.topology}, {values.batch} pictures a chip, bfloat16',
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
            figures = (
                found.total_cycles / 1e6, found.bytes / 1e9, found.flops / 1e12,
                found.memory / 2**30, took,
            )  # fmt: skip
            table.add_row(name, *(f'{figure:.1f}' for figure in figures))
            console.print(f'{model}, {name}: {figures[0]:.1f} M cycles, {took:.0f} s')
        console.print(table)
    turns.publish(results, console)


Lower = Callable[[Mesh, int], jax.stages.Lowered]


def contenders(model: str, with_keras: bool) -> dict[str, Lower]:
    """What is compared: by name, what lowers a step for devices and a batch of a size."""

    def reference(mesh: Mesh, batch: int) -> jax.stages.Lowered:
        return ours(model, mesh, batch, lowering='reference')

    def apart(mesh: Mesh, batch: int) -> jax.stages.Lowered:
        with mock.patch.object(separable, 'FOLD_TO', 0):
            return ours(model, mesh, batch)

    found: dict[str, Lower] = {}
    if with_keras:
        found['Keras on JAX'] = lambda mesh, batch: keras(model, mesh, batch)
    found["lowering='reference'"] = reference
    if model == 'xception':
        found['depthwise and pointwise apart'] = apart
    found['xception_flax'] = lambda mesh, batch: ours(model, mesh, batch)
    return found


def ours(model: str, mesh: Mesh, batch: int, **overrides: Any) -> jax.stages.Lowered:
    """The step of `xception_flax.main`."""
    config = networks.config(model, batch, dtype='bfloat16', **overrides)
    run = set_up(config, mesh)
    images, labels = given(mesh, batch)
    return run.train_step.lower(run.abstract_state, {'image': images, 'label': labels})


def keras(model: str, mesh: Mesh, batch: int) -> jax.stages.Lowered:
    """The step of `Model.fit`, on a network of `keras.applications`."""
    import keras

    keras.mixed_precision.set_global_policy('mixed_bfloat16')
    network = getattr(keras.applications, MODELS[model])(
        weights=None, classes=networks.CLASSES, classifier_activation=None
    )
    whole = keras.Sequential([keras.layers.Rescaling(1 / 127.5, -1), network])
    whole.compile(
        keras.optimizers.SGD(networks.RATE, momentum=networks.MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    whole.build((None, networks.SIZE, networks.SIZE, 3))
    whole.optimizer.build(whole.trainable_variables)
    everywhere, split = meshes.replicated(mesh), meshes.split(mesh)
    state = tuple(
        [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere) for x in variables]
        for variables in (
            whole.trainable_variables,
            whole.non_trainable_variables,
            whole.optimizer.variables,
            whole.metrics_variables,
        )
    )
    step = jax.jit(
        whole.train_step,
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    return step.lower(state, given(mesh, batch))


def given(mesh: Mesh, batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Pictures and labels, abstract."""
    split = meshes.split(mesh)
    return (
        jax.ShapeDtypeStruct((batch, networks.SIZE, networks.SIZE, 3), jnp.uint8, sharding=split),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split),
    )


if __name__ == '__main__':
    turns.run(main)
