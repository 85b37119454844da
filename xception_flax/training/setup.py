"""From a config to all that a run is made of, with nothing computed yet."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax import config as configs
from xception_flax.config import reading
from xception_flax.config.checks import build_model, check_values
from xception_flax.data import sources
from xception_flax.runtime import hosts
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime.checkpoints import checksums
from xception_flax.runtime.errors import UserError
from xception_flax.training import evaluation, transfer
from xception_flax.training.optimizers import make_optimizer, make_schedule
from xception_flax.training.state import TrainState, create_state
from xception_flax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of.

    Attributes:
      config: the checked config, with the numbers of classes and examples filled in.
      durations: its durations in steps.
      train_source: the training split.
      eval_source: the evaluation split.
      mesh: all devices.
      model: the network.
      abstract_state: shapes, types and shardings of the state.
      frozen: paths of the modules that do not learn.
      init: draws the initial state, or reads weights to start from; says which in words.
      train_step: `(state, batch) -> (state, metrics)`; the state that it is given is used up.
      eval_step: `(variables, batch) -> sums`.
      title: what is trained on what, in words.
    """

    config: ConfigDict
    durations: configs.Durations
    train_source: sources.Source
    eval_source: sources.Source
    mesh: Mesh
    model: nn.Module
    abstract_state: TrainState
    frozen: tuple[str, ...]
    init: Callable[[], tuple[TrainState, str]]
    train_step: Callable
    eval_step: Callable
    title: str


def set_up(config: ConfigDict, mesh: Mesh | None = None) -> Run:
    """Checks a config and prepares its run.

    Args:
      config: the run's config.
      mesh: the devices; by default all that are there.

    Raises:
      UserError: a setting cannot work, or the data is not there.
    """
    check_values(config)
    jax.config.update('jax_enable_x64', config.dtype == 'float64')
    train_source = sources.load(config, config.dataset.train_split)
    eval_source = sources.load(config, config.dataset.eval_split)
    if list(train_source.class_names) != list(eval_source.class_names):
        raise UserError(
            f'the classes of {config.dataset.train_split} and {config.dataset.eval_split} differ: '
            f'{train_source.num_classes} and {eval_source.num_classes}, or of other names'
        )
    mesh = mesh or meshes.make_mesh()
    # Every host reads the same examples in the same order; their folders may differ.
    common = config.copy_and_resolve_references()
    common.dataset.data_dir = common.init.weights = ''
    data = (len(train_source), len(eval_source), list(train_source.class_names))
    hosts.check_same(f'{reading.to_json(common)} {data}', 'settings or data')
    durations = configs.check(config, len(train_source), train_source.num_classes, mesh.size)
    config = config.copy_and_resolve_references()
    config.dataset.num_classes = train_source.num_classes
    config.dataset.num_examples = len(train_source)

    dataset = config.dataset
    model = build_model(config, train_source.num_classes)
    schedule = make_schedule(config, durations)
    frozen = transfer.frozen_modules(config, model) if config.frozen else ()
    layerwise = config.optimizer.layer_decay < 1
    multipliers = transfer.layer_multipliers(config, model) if layerwise else None
    optimizer = make_optimizer(config, schedule, multipliers)
    everywhere, split = meshes.replicated(mesh), meshes.split(mesh)
    create = functools.partial(
        create_state, model, optimizer, config.image_size, bool(config.ema_decay), frozen=frozen
    )
    rng = jax.random.key(config.seed)
    abstract_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(create, rng),
    )

    def init() -> tuple[TrainState, str]:
        loaded, origin = None, 'starting from random weights'
        if config.init.weights:
            loaded, origin = transfer.load(config, abstract_state.variables('live'))
            hosts.check_same(str(checksums(loaded)), 'initial weights')
        return jax.jit(create, out_shardings=everywhere)(rng, loaded=loaded), origin

    return Run(
        config=config,
        durations=durations,
        train_source=train_source,
        eval_source=eval_source,
        mesh=mesh,
        model=model,
        abstract_state=abstract_state,
        frozen=frozen,
        init=init,
        train_step=jax.jit(
            make_train_step(
                model, optimizer, schedule, config, frozen, mesh.devices.flat[0].platform
            ),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
            donate_argnums=0,
        ),
        eval_step=evaluation.compiled_step(model, config, mesh, eval_source),
        title=f'{config.model} on {dataset.name if dataset.source == "tfds" else dataset.source}',
    )
