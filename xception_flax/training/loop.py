"""The training loop, one for all: set up, restore, step, evaluate, save, finish."""

import collections
import functools
import pathlib
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax import config as configs
from xception_flax.config import reading
from xception_flax.config.checks import build_model, check_values
from xception_flax.data import pipeline, sources
from xception_flax.runtime import curves, flops, writers
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.runtime.progress import Progress, duration, results_line
from xception_flax.training.evaluation import evaluate
from xception_flax.training.optimizers import make_optimizer, make_schedule
from xception_flax.training.state import TrainState, create_state
from xception_flax.training.step import make_eval_step, make_train_step

# Steps that the host may run ahead of the devices: enough to keep them busy, few enough that
# waiting batches do not fill their memory.
STEPS_AHEAD = 2
WARM_STEPS = 10  # before a profile


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains what the config says in `workdir`, or goes on where the last start ended.

    Args:
      config: the run's config.
      workdir: gets `config.json`, `metrics.jsonl`, `curves.png`, `checkpoints/`, `tensorboard/`.

    Returns:
      The metrics of the last evaluation, of the averaged weights where there are any.

    Raises:
      UserError: a setting cannot work; nothing has been done then.
    """
    # ---- Set up -------------------------------------------------------------------------------
    check_values(config)
    train_source = sources.load(config, config.dataset.train_split)
    eval_source = sources.load(config, config.dataset.eval_split)
    mesh = meshes.make_mesh()
    durations = configs.check(config, len(train_source), train_source.num_classes, mesh.size)
    config = config.copy_and_resolve_references()
    config.dataset.num_classes = train_source.num_classes
    primary = jax.process_index() == 0
    progress = Progress(durations.total, visible=primary)

    model = build_model(config, train_source.num_classes)
    schedule = make_schedule(config, durations)
    optimizer = make_optimizer(config, schedule)
    everywhere, split = meshes.replicated(mesh), meshes.split(mesh)
    init = functools.partial(
        create_state, model, optimizer, config.image_size, bool(config.ema_decay)
    )
    rng = jax.random.key(config.seed)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(init, rng),
    )
    train_step = jax.jit(
        make_train_step(model, optimizer, schedule, config),
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    eval_step = jax.jit(
        make_eval_step(model, config), in_shardings=(everywhere, split), out_shardings=everywhere
    )
    _introduce(progress, config, abstract, mesh, train_source, eval_source, durations)

    # ---- Restore ------------------------------------------------------------------------------
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, config.keep_last, config.keep_best)
    saved = checkpoints.restore(abstract)
    if saved is None:
        saved = Checkpoint(jax.jit(init, out_shardings=everywhere)(rng))
    state, position, progress.seconds = saved.state, saved.position, saved.seconds
    start = int(state.step)
    if start >= durations.total:
        progress.say(f'this run is complete: its newest checkpoint is of step {start:,}.')
        _finish(progress, workdir, checkpoints, config)
        return _headline(writers.read(workdir / 'metrics.jsonl'))
    if start:
        progress.say(f'going on from the checkpoint of step {start:,}')
    if primary:
        (workdir / 'config.json').write_text(reading.to_json(config))
    writer = writers.MetricWriter(workdir, start) if primary else None
    peak = flops.peak(mesh.devices.flat[0])
    work = flops.training_flops(model, config.image_size) if peak else 0.0

    def log(step: int, metrics: dict[str, Any]) -> None:
        """Writes the training's own metrics of a step that the devices have finished."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        speed = progress.steps_per_second(step)
        progress.log(step, metrics, config.batch_size, speed)
        metrics['examples_per_second'] = round(speed * config.batch_size, 1)
        if peak:
            share = work * speed * config.batch_size / (peak * mesh.size)
            metrics['flops_utilisation'] = round(share, 4)
        if writer:
            writer.write({'step': step, 'split': config.dataset.train_split, **metrics})

    def measure(step: int) -> dict[str, float]:
        """Evaluates, writes and shows the results, and redraws the curves."""
        variables = {weights: state.variables(weights) for weights in state.weights}
        results = evaluate(eval_step, variables, eval_source, config, mesh, progress)
        for weights, values in results.items():
            record = {'step': step, 'split': config.dataset.eval_split, 'weights': weights}
            line = results_line(config.dataset.eval_split, weights, values)
            progress.say(f'step {step:,}  {line}')
            if writer:
                writer.write({**record, **values})
        if primary:
            title = f'{config.model} on {config.dataset.name or config.dataset.source}'
            curves.draw(writers.read(workdir / 'metrics.jsonl'), workdir / 'curves.png', title)
        return results[state.weights[-1]]

    # ---- Step, evaluate, save -----------------------------------------------------------------
    local = pipeline.training_batches(
        train_source, config, position, jax.process_index(), jax.process_count()
    )
    batches = meshes.global_batches(mesh, local)
    ahead: collections.deque[dict[str, jax.Array]] = collections.deque()
    began = time.perf_counter()
    progress.say('compiling the training step')
    for step in range(start + 1, durations.total + 1):
        _profile(config, workdir, step - start, primary)
        state, metrics = train_step(state, next(batches))
        position += config.batch_size
        if step == start + 1:
            jax.block_until_ready(metrics)
            progress.say(f'first step after {duration(time.perf_counter() - began)}')
            progress.start(start + 1)
        progress.advance()

        ahead.append(metrics)
        if len(ahead) > STEPS_AHEAD:
            jax.block_until_ready(ahead.popleft())
        last = step == durations.total
        if last or durations.due(durations.log, step):
            log(step, metrics)
        evaluated = None
        if last or durations.due(durations.eval, step):
            with progress.pause():
                evaluated = measure(step)
        if evaluated or durations.due(durations.checkpoint, step):
            with progress.pause():
                top1 = evaluated['top1'] if evaluated else None
                checkpoints.save(Checkpoint(state, position, progress.seconds, top1))

    # ---- Finish -------------------------------------------------------------------------------
    progress.close()
    if writer:
        writer.close()
    _finish(progress, workdir, checkpoints, config)
    return _headline(writers.read(workdir / 'metrics.jsonl'))


def _introduce(
    progress: Progress,
    config: ConfigDict,
    state: TrainState,
    mesh: Mesh,
    train_source: sources.Source,
    eval_source: sources.Source,
    durations: configs.Durations,
) -> None:
    """Says what is about to be trained, on what."""
    device = mesh.devices.flat[0]
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    d = config.dataset
    progress.say(
        f'{config.model}: {parameters:,} trainable parameters, pictures of '
        f'{config.image_size}x{config.image_size}, {config.dtype}\n'
        f'{d.name or d.source}: {len(train_source):,} {d.train_split} and {len(eval_source):,} '
        f'{d.eval_split} examples, {train_source.num_classes} classes\n'
        f'{durations.total:,} steps of {config.batch_size}, '
        f'{durations.total * config.batch_size / len(train_source):.1f} epochs, on '
        f'{mesh.size} x {device.device_kind}'
    )


def _profile(config: ConfigDict, workdir: pathlib.Path, step: int, primary: bool) -> None:
    """Starts or ends the trace of `profile_steps` steps after the first ten of this start."""
    if not config.profile_steps or not primary:
        return
    if step == 1 + WARM_STEPS:
        jax.profiler.start_trace(workdir / 'tensorboard')
    elif step == 1 + WARM_STEPS + config.profile_steps:
        jax.profiler.stop_trace()


def _headline(records: list[writers.Record]) -> dict[str, float]:
    """The last evaluation's metrics; averaged weights are written after live ones."""
    evaluations = [record for record in records if 'weights' in record]
    return evaluations[-1] if evaluations else {}


def _finish(
    progress: Progress, workdir: pathlib.Path, checkpoints: Checkpoints, config: ConfigDict
) -> None:
    """Waits for the last checkpoint and says what was reached and where everything is."""
    checkpoints.wait()
    best, steps = checkpoints.best_step(), checkpoints.steps()
    checkpoints.close()
    result = _headline(writers.read(workdir / 'metrics.jsonl'))
    if result:
        progress.say(
            f'final {config.dataset.eval_split} accuracy: {result["top1"]:.4f} '
            f'(top-5 {result["top5"]:.4f}, {result["weights"]} weights, '
            f'{result["examples"]:,} examples), after {duration(progress.seconds)} of training'
        )
    progress.say(
        f'in {workdir}:\n'
        f'  curves.png     the training curves\n'
        f'  metrics.jsonl  every number (TensorBoard: tensorboard --logdir {workdir})\n'
        f'  checkpoints/   steps {", ".join(map(str, steps))}; best top-1 at {best}\n'
        f'  config.json    all settings'
    )
