"""From a config to all parts of a run, with nothing computed yet."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax import models, ops
from xception_flax.base import mesh as meshes
from xception_flax.base import processes
from xception_flax.base.errors import UserError
from xception_flax.config import Durations, reading
from xception_flax.data import class_weights, protocols, sources
from xception_flax.runtime.checkpoints import TrainState, checksums
from xception_flax.training import checks, evaluation, freezing, layer_decay
from xception_flax.training.metrics import Task
from xception_flax.training.optimizers import make_optimizer, make_schedule
from xception_flax.training.state import create_state
from xception_flax.training.step import make_train_step
from xception_flax.weights.start import fit_start, read_start


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      config: the checked config, with the numbers of classes and examples filled in.
      durations: its durations in steps.
      train_source: the training split.
      eval_source: the evaluation split.
      mesh: all devices.
      model: the network.
      abstract_state: shapes, types and shardings of the state.
      frozen: paths of the frozen modules.
      init: initialises the state, or reads weights to start from; gives a sentence that says which.
      train_step: `(state, batch) -> (state, metrics)`; the given state is donated.
      eval_step: `(variables, batch) -> totals`; see `step.make_eval_step`.
      task: what is evaluated.
      title: network and data set, such as 'xception on digits'.
    """

    config: ConfigDict
    durations: Durations
    train_source: sources.Source
    eval_source: sources.Source
    mesh: Mesh
    model: models.Network
    abstract_state: TrainState
    frozen: tuple[str, ...]
    init: Callable[[], tuple[TrainState, str]]
    train_step: Callable
    eval_step: Callable
    task: Task
    title: str


def set_up(config: ConfigDict, mesh: Mesh | None = None, fresh: bool = False) -> Run:
    """Checks a config and prepares its run.

    Args:
      config: the config.
      mesh: the devices; None for all.
      fresh: whether the run is known to be new: the weights that it starts from are read at once,
        so that a mistake in them is told before the data is opened.

    Raises:
      UserError: a setting cannot work, or the data or the weights are not there.
    """
    checks.check_values(config)
    if config.dtype == 'float64':
        jax.config.update('jax_enable_x64', True)
    start = read_start(config) if fresh and config.init.weights else None
    train_source, eval_source = _open_data(config)
    mesh = mesh or meshes.make_mesh()
    checks.check_lowering(config, mesh.devices.flat[0].platform)
    _check_processes(config, train_source, eval_source)
    classes = train_source.num_classes
    durations = checks.check(config, len(train_source), classes, mesh.size)
    config = config.copy_and_resolve_references()
    config.dataset.num_classes, config.dataset.num_examples = classes, len(train_source)
    protocols.fill(config)
    task = evaluation.task_of(config, eval_source)
    checks.check_best(config, task, eval_source)

    loss_weights = class_weights.of_loss(config, train_source)

    model = models.build_model(config, classes)
    schedule = make_schedule(config, durations)
    frozen = freezing.frozen_modules(config, model) if config.frozen else ()
    layerwise = config.optimizer.layer_decay < 1
    multipliers = layer_decay.layer_multipliers(config, model) if layerwise else None
    optimizer = make_optimizer(config, schedule, multipliers)
    everywhere = meshes.replicated(mesh)
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
            net = start or read_start(config)
            loaded, origin = fit_start(net, config, abstract_state.variables('live'))
            processes.check_same(str(checksums(loaded)), 'initial weights')
        return jax.jit(create, out_shardings=everywhere)(rng, loaded=loaded), origin

    dataset = config.dataset
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
            make_train_step(model, optimizer, schedule, config, frozen, mesh, loss_weights),
            in_shardings=(everywhere, meshes.sharded(mesh)),
            out_shardings=everywhere,
            donate_argnums=0,
            compiler_options=_options(abstract_state, frozen, mesh),
        ),
        eval_step=evaluation.compiled_step(model, config, mesh, task),
        task=task,
        title=f'{config.model} on {dataset.name if dataset.source == "tfds" else dataset.source}',
    )


def _open_data(config: ConfigDict) -> tuple[sources.Source, sources.Source]:
    """The training and the evaluation split."""
    names = config.dataset.train_split, config.dataset.eval_split
    train, test = sources.load_all(config, names)
    if list(train.class_names) != list(test.class_names):
        raise UserError(
            f'the classes of {names[0]} and {names[1]} differ: {train.num_classes} and '
            f'{test.num_classes}, or of other names'
        )
    return train, test


def _options(state: TrainState, frozen: tuple[str, ...], mesh: Mesh) -> dict[str, str]:
    """Options of XLA for the training step: those of inference if no convolution is trained."""
    trained, _ = freezing.partition(state.params, frozen)
    if any(x.ndim > 2 for x in jax.tree.leaves(trained)):
        return {}
    return ops.forward_options(mesh.devices.flat[0].platform)


def _check_processes(
    config: ConfigDict, train_source: sources.Source, eval_source: sources.Source
) -> None:
    """Checks that all processes see the same settings and data; their folders may differ."""
    common = config.copy_and_resolve_references()
    common.dataset.data_dir = common.dataset.copy_to = common.init.weights = ''
    data = (len(train_source), len(eval_source), list(train_source.class_names))
    processes.check_same(f'{reading.to_json(common)} {data}', 'settings or data')
