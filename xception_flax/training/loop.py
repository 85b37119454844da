"""The training loop, one for all: set up, restore, step, evaluate, save, finish."""

import collections
import pathlib
import time

import jax
from ml_collections import ConfigDict

from xception_flax.data import pipeline
from xception_flax.runtime import mesh as meshes
from xception_flax.runtime import writers
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.runtime.progress import Progress, duration
from xception_flax.training.evaluation import evaluate
from xception_flax.training.recorder import Recorder
from xception_flax.training.setup import Run, set_up

# Steps that the host runs ahead of the devices: enough to keep them busy, few enough that waiting
# batches do not fill their memory.
STEPS_AHEAD = 2
WARM_STEPS = 10  # before a profile


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains what the config says in `workdir`, or goes on where the last start ended.

    Args:
      config: the run's config.
      workdir: gets `config.json`, `metrics.jsonl`, `curves.png`, `checkpoints/`, `tensorboard/`.

    Raises:
      UserError: a setting cannot work; nothing has been done then.
    """
    run = set_up(config)
    progress = Progress(run.durations.total, visible=jax.process_index() == 0)
    _introduce(run, progress)

    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, config.keep_last, config.keep_best)
    saved = checkpoints.restore(run.abstract_state)
    if saved is None:
        saved = Checkpoint(run.init())
    else:
        progress.seconds = saved.seconds
    start = int(saved.state.step)
    if start >= run.durations.total:
        progress.say(f'this run is complete: its newest checkpoint is of step {start:,}.')
    else:
        if start:
            progress.say(f'going on from the checkpoint of step {start:,}')
        _steps(run, workdir, checkpoints, saved, progress)
    _finish(run, workdir, checkpoints, progress)


def _steps(
    run: Run,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    saved: Checkpoint,
    progress: Progress,
) -> None:
    """Trains from a checkpoint to the end; evaluates and saves on the way."""
    config, durations, host, hosts = (
        run.config, run.durations, jax.process_index(), jax.process_count()
    )  # fmt: skip
    state, position, start = saved.state, saved.position, int(saved.state.step)
    recorder = Recorder(run, workdir, start, progress)
    local = pipeline.training_batches(run.train_source, config, position, host, hosts)
    batches = meshes.global_batches(run.mesh, local)
    under_way: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()

    def await_all_but(count: int) -> None:
        """Waits for the oldest steps under way, and records those that are to be logged."""
        while len(under_way) > count:
            done, metrics = under_way.popleft()
            jax.block_until_ready(metrics)
            progress.advance()
            if done == durations.total or durations.due(durations.log, done):
                recorder.train(done, metrics)

    progress.say('compiling the training step')
    began = time.perf_counter()
    for step in range(start + 1, durations.total + 1):
        _profile(config, workdir, step - start)
        state, metrics = run.train_step(state, next(batches))
        position += config.batch_size
        under_way.append((step, metrics))

        evaluating = step == durations.total or durations.due(durations.eval, step)
        saving = evaluating or durations.due(durations.checkpoint, step)
        first = step == start + 1
        await_all_but(0 if first or saving else STEPS_AHEAD)
        if first:
            progress.say(f'first step after {duration(time.perf_counter() - began)}')
            progress.start(step)
        top1 = None
        if evaluating:
            with progress.pause():
                variables = {weights: state.variables(weights) for weights in state.weights}
                results = evaluate(
                    run.eval_step, variables, run.eval_source, config, run.mesh, progress
                )
                recorder.evaluation(step, results)
                top1 = results[state.weights[-1]]['top1']
        if saving:
            with progress.pause():
                checkpoints.save(Checkpoint(state, position, progress.seconds, top1))
    progress.close()
    recorder.close()


def _introduce(run: Run, progress: Progress) -> None:
    """Says what is about to be trained, on what."""
    config, dataset = run.config, run.config.dataset
    parameters = sum(x.size for x in jax.tree.leaves(run.abstract_state.params))
    epochs = run.durations.total * config.batch_size / len(run.train_source)
    progress.say(
        f'{config.model}: {parameters:,} trainable parameters, pictures of '
        f'{config.image_size}x{config.image_size}, {config.dtype}\n'
        f'{dataset.name or dataset.source}: {len(run.train_source):,} {dataset.train_split} and '
        f'{len(run.eval_source):,} {dataset.eval_split} examples, {dataset.num_classes} classes\n'
        f'{run.durations.total:,} steps of {config.batch_size}, {epochs:.1f} epochs, on '
        f'{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}'
    )


def _profile(config: ConfigDict, workdir: pathlib.Path, step: int) -> None:
    """Starts or ends the trace of `profile_steps` steps after the first ten of this start."""
    if not config.profile_steps or jax.process_index() != 0:
        return
    if step == 1 + WARM_STEPS:
        jax.profiler.start_trace(workdir / 'tensorboard')
    elif step == 1 + WARM_STEPS + config.profile_steps:
        jax.profiler.stop_trace()


def _finish(run: Run, workdir: pathlib.Path, checkpoints: Checkpoints, progress: Progress) -> None:
    """Waits for the last checkpoint and says what was reached and where everything is."""
    checkpoints.wait()
    best, steps = checkpoints.best_step(), checkpoints.steps()
    checkpoints.close()
    evaluations = [r for r in writers.read(workdir / 'metrics.jsonl') if 'weights' in r]
    if evaluations:
        last = evaluations[-1]  # averaged weights are written after live ones
        progress.say(
            f'final {run.config.dataset.eval_split} accuracy: {last["top1"]:.4f} '
            f'(top-5 {last["top5"]:.4f}, {last["weights"]} weights, '
            f'{last["examples"]:,} examples), after {duration(progress.seconds)} of training'
        )
    progress.say(
        f'in {workdir}:\n'
        f'  curves.png     the training curves\n'
        f'  metrics.jsonl  every number (TensorBoard: tensorboard --logdir {workdir})\n'
        f'  checkpoints/   steps {", ".join(map(str, steps))}; best top-1 at {best}\n'
        f'  config.json    all settings'
    )
