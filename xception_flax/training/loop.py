"""The training loop: set up, restore, step, save, evaluate, finish."""

import collections
import concurrent.futures
import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from xception_flax.base import extras, paths, processes
from xception_flax.base import mesh as meshes
from xception_flax.base.errors import UserError
from xception_flax.base.locks import Lock
from xception_flax.base.signals import Stopped, StopSignals
from xception_flax.data import pipeline, workers
from xception_flax.data.reader import Reader
from xception_flax.runtime import workdirs, writers
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints, saved_steps
from xception_flax.runtime.progress import Progress, duration
from xception_flax.training import freezing, metrics
from xception_flax.training.evaluation import evaluate
from xception_flax.training.recorder import Recorder
from xception_flax.training.setup import Run, set_up
from xception_flax.training.step import choose_operations

# Steps that the host dispatches ahead of the devices: enough to keep them busy, few enough that
# waiting batches do not fill their memory.
STEPS_AHEAD = 2
WARM_STEPS = 10  # before a profile


def train(config: ConfigDict, workdir: paths.Path, stop: StopSignals | None = None) -> None:
    """Trains by a config in `workdir`, or resumes the run there.

    Args:
      config: the run's config.
      workdir: gets `config.json`, `classes.json`, `metrics.jsonl`, `curves.png`, `checkpoints/`,
        `tensorboard/`.
      stop: signals that end the run after a step.

    Raises:
      UserError: a setting cannot work (nothing has been done then), or data or disk fail.
      Stopped: a signal came; all work is saved.
    """
    run = set_up(config, fresh=not saved_steps(workdir))
    if config.tracker:
        extras.check(config.tracker, config.tracker, f'config.tracker={config.tracker!r}')
    progress = Progress(run.durations.total, visible=jax.process_index() == 0)
    _introduce(run, progress)
    with (
        workdirs.claim(workdir) as lock,
        contextlib.closing(progress),
        contextlib.closing(_Training(run, workdir, lock, progress, stop)) as training,
    ):
        training.go()
        progress.close()
        _finish(training)


class _Training:
    """One start of a run: its state and position."""

    def __init__(
        self,
        run: Run,
        workdir: paths.Path,
        lock: Lock,
        progress: Progress,
        stop: StopSignals | None,
    ):
        self.run, self.workdir, self.progress, self.stop = run, workdir, progress, stop
        self.lock = lock
        averaged = run.abstract_state.ema is not None
        self.recorder = Recorder(
            run, workdir, progress, ('live', 'averaged') if averaged else ('live',)
        )
        config = run.config
        self.checkpoints = Checkpoints(
            workdir, config.keep_last, config.keep_best, self.recorder.scores
        )
        self.saved: int | None = None  # step of the newest checkpoint
        self.last: dict[str, float] | None = None  # metrics of the newest completed step
        self.dispatched: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
        self.skipped = self.skipped_in_row = 0  # steps
        self.train_reader, self.eval_reader = (
            Reader(source, config.max_unreadable, jax.process_count(), config.max_megapixels)
            for source in (run.train_source, run.eval_source)
        )

    def go(self) -> None:
        """Restores, and trains to the end."""
        start = self._restore()
        total, durations = self.run.durations.total, self.run.durations
        if start in self.recorder.scores and (start >= total or self.recorder.exhausted()):
            self.progress.say(f'this run is complete: its newest checkpoint is of step {start:,}.')
            return
        if start:
            self.progress.say(f'resuming from the checkpoint of step {start:,}')
        self._choose_operations()
        self.recorder.start(start)
        if start and self._evaluation_is_due(start) and start not in self.recorder.scores:
            self._evaluate(start)
        if start >= total:
            return
        local = pipeline.training_batches(
            self.train_reader,
            self.run.config,
            self.position,
            jax.process_index(),
            jax.process_count(),
        )
        self.progress.say('compiling the training step')
        with (
            contextlib.closing(local),
            contextlib.closing(
                _Feed(meshes.global_batches(self.run.mesh, local, self.stop), self.progress)
            ) as self.feed,
            _Profile(self.run.config.profile_steps, self.workdir) as profile,
        ):
            for step in range(start + 1, total + 1):
                profile.before(step - start)
                self._step(step, self.feed.next(), first=step == start + 1)
                evaluating = self._evaluation_is_due(step)
                if evaluating or durations.due(durations.checkpoint, step):
                    self._save(step)
                if evaluating:
                    self._evaluate(step)
                    if self.recorder.exhausted():
                        self._say_exhausted(step)
                        return
                if processes.stop_agreed(self.stop, self.last):
                    self._end_early(step)

    def _choose_operations(self) -> None:
        run, config = self.run, self.run.config
        choose_operations(
            run.model, run.abstract_state.variables('live'), config, run.mesh,
            (config.batch_size // config.accumulation, config.batch_size), self.progress.say,
        )  # fmt: skip

    def _restore(self) -> int:
        """Restores the newest whole checkpoint, or initialises the state; gives its step."""
        run, changed = self.run, []
        class_names = run.train_source.class_names
        if self.checkpoints.steps():
            changed = workdirs.check_fits(self.workdir, run.config, class_names)
        saved, damaged = self.checkpoints.restore(run.abstract_state)
        for line in damaged:
            self.progress.say(f'warning: {line}')
        examples = len(run.train_source)
        if saved is not None and saved.examples != examples:
            raise UserError(
                f'{run.config.dataset.train_split} has {examples:,} examples, but had '
                f'{saved.examples:,} when the run in {self.workdir} began; restore the data'
            )
        for line in changed:
            self.progress.say(f'changed since the last start: {line}')
        self.saved = None if saved is None else int(saved.state.step)
        if saved is None:
            state, origin = run.init()
            self.progress.say(origin)
            saved = Checkpoint(state)
        workdirs.write_settings(self.workdir, run.config, class_names)
        self.state, self.position = saved.state, saved.position
        self.skipped, self.skipped_in_row = saved.skipped, saved.skipped_in_row
        self.progress.seconds = saved.seconds
        return int(self.state.step)

    def _step(self, step: int, batch: dict[str, jax.Array], first: bool) -> None:
        began = time.perf_counter()
        self.state, values = self.run.train_step(self.state, batch)
        self.position += self.run.config.batch_size
        self.dispatched.append((step, values))
        self.feed.busy_until(values)
        self._await_all_but(0 if first else STEPS_AHEAD)
        if first:
            self.progress.say(f'first step after {duration(time.perf_counter() - began)}')
            self.progress.start(step)

    def _await_all_but(self, count: int) -> None:
        """Waits for the oldest dispatched steps, and records those to log."""
        durations = self.run.durations
        while len(self.dispatched) > count:
            step, values = self.dispatched.popleft()
            self.last = {name: float(x) for name, x in jax.device_get(values).items()}
            self.progress.advance()
            self._check_finite(step, self.last)
            if step == durations.total or durations.due(durations.log, step):
                self.recorder.train(step, self.last)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        config = self.run.config
        if not values['skipped']:
            self.skipped_in_row = 0
            return
        self.skipped += 1
        self.skipped_in_row += 1
        what = f'loss {values["loss"]:.4g}, gradient norm {values["gradient_norm"]:.4g}'
        if config.nonfinite == 'skip' and self.skipped_in_row < config.nonfinite_limit:
            self.progress.say(f'step {step:,} is skipped: {what}')
            return
        first = self.position - (len(self.dispatched) + 1) * config.batch_size
        order = pipeline.training_order(len(self.run.train_source), config.seed)
        examples = [
            self.run.train_source.name(order[i]) for i in range(first, first + config.batch_size)
        ]
        self.recorder.fault(step, values, examples)
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        newest = f'newest checkpoint: {steps[-1]:,}' if steps else 'no checkpoint yet'
        raise UserError(
            f'step {step:,} is not finite ({what}, learning rate {values["learning_rate"]:.4g}; '
            f'{self.skipped_in_row} in a row; {newest}). Its examples are in '
            f'{self.workdir / "nonfinite.json"}: {examples[0]}, ... Lower the learning rate, clip '
            "(config.optimizer.clip_norm), or skip such steps by config.nonfinite='skip'"
        )

    def _say_exhausted(self, step: int) -> None:
        config = self.run.config
        label = metrics.by_name(config.best).label
        self.progress.say(
            f'the training ends at step {step:,}: no better {label} in the last {config.patience} '
            'evaluations (config.patience)'
        )

    def _evaluation_is_due(self, step: int) -> bool:
        durations = self.run.durations
        return step == durations.total or durations.due(durations.eval, step)

    def _save(self, step: int) -> None:
        self._await_all_but(0)
        with self.progress.pause():
            self.lock.check()
            self.recorder.sync()
            self.checkpoints.save(
                Checkpoint(
                    self.state,
                    self.position,
                    len(self.run.train_source),
                    self.progress.seconds,
                    self.skipped,
                    self.skipped_in_row,
                )
            )
        self.saved = step

    def _evaluate(self, step: int) -> None:
        """Evaluates a state that is already saved; a signal meanwhile ends the run."""
        run, state = self.run, self.state
        with self.progress.pause():
            variables = {weights: state.variables(weights) for weights in state.weights}
            results = evaluate(
                run.eval_step, variables, self.eval_reader, run.config, run.mesh, self.progress,
                run.task, self.stop,
            )  # fmt: skip
            if results:
                self.lock.check()
                self.recorder.evaluation(step, results)
                return
        self._end_early(step)

    def _end_early(self, step: int) -> None:
        began = time.perf_counter()
        if self.saved != step:
            self._save(step)
        self.checkpoints.wait()
        raise Stopped(
            f'stopped at step {step:,}, which is saved ({time.perf_counter() - began:.1f} s); '
            'the same command resumes it'
        )

    def close(self) -> None:
        """Closes all files; a checkpoint that is being written is finished first."""
        self.recorder.close()
        with contextlib.suppress(UserError):  # another error is on its way already
            self.checkpoints.close()


class _Feed:
    """Takes the batches, and counts the time in which the devices wait for one.

    While they compute, the host may wait for a batch for as long as it takes: only what is left of
    that when the newest step is done counts.
    """

    def __init__(self, batches: Iterator[dict[str, jax.Array]], progress: Progress):
        self._batches, self._progress = batches, progress
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'feed')
        self._idle: concurrent.futures.Future[float] | None = None

    def next(self) -> dict[str, jax.Array]:
        """The next batch."""
        began = time.perf_counter()
        batch = next(self._batches)
        came = time.perf_counter()
        if self._idle is not None and self._idle.done():
            self._progress.wait(came - max(began, min(self._idle.result(), came)))
        return batch

    def busy_until(self, values: dict[str, jax.Array]) -> None:
        """Tells it the results of the newest step."""
        self._idle = self._thread.submit(_time_of, values)

    def close(self) -> None:
        """Ends its thread."""
        self._thread.shutdown(wait=False)


def _time_of(values: dict[str, jax.Array]) -> float:
    """Waits for results; gives the time."""
    with contextlib.suppress(Exception):  # which the main thread gets, too
        jax.block_until_ready(values)
    return time.perf_counter()


class _Profile:
    """A trace of some steps after the first ten of a start, for the profiler of TensorBoard."""

    def __init__(self, steps: int, workdir: paths.Path):
        self.steps = steps if jax.process_index() == 0 else 0
        self.folder, self.running = workdir / 'tensorboard', False

    def before(self, step: int) -> None:
        """Starts or ends the trace before `step`, counted from this start."""
        if self.steps and step == 1 + WARM_STEPS:
            self.local = tempfile.mkdtemp() if paths.in_bucket(self.folder) else self.folder
            jax.profiler.start_trace(self.local)
            self.running = True
        elif self.running and step == 1 + WARM_STEPS + self.steps:
            self.__exit__()

    def __enter__(self) -> '_Profile':
        return self

    def __exit__(self, *_: Any) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            if paths.in_bucket(self.folder):
                paths.upload(pathlib.Path(self.local), self.folder)


def _introduce(run: Run, progress: Progress) -> None:
    """Prints the network, the data, the length and the devices."""
    config, dataset = run.config, run.config.dataset
    trainable, frozen = (
        sum(x.size for x in jax.tree.leaves(part))
        for part in freezing.partition(run.abstract_state.params, run.frozen)
    )
    epochs = run.durations.total * config.batch_size / len(run.train_source)
    loaders = workers.number(config, len(run.train_source), jax.process_count())
    progress.say(
        f'{run.title}: {trainable:,} trainable parameters'
        + (f' ({frozen:,} frozen)' if frozen else '')
        + f', images of {config.image_size}x{config.image_size}, {config.dtype}\n'
        f'{len(run.train_source):,} {dataset.train_split} and '
        f'{len(run.eval_source):,} {dataset.eval_split} examples, {dataset.num_classes} classes\n'
        f'{run.durations.total:,} steps of {config.batch_size}, {epochs:.1f} epochs, on '
        f'{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}'
        + (f', {loaders} processes load images' if loaders else '')
    )


def _finish(training: _Training) -> None:
    """Waits for the last checkpoint and prints the results and the files."""
    run, progress, workdir = training.run, training.progress, training.workdir
    checkpoints = training.checkpoints
    training.lock.check()
    training.recorder.sync()
    checkpoints.wait()
    best, steps = checkpoints.best_step(), checkpoints.steps()
    unreadable = len(training.train_reader.unreadable)
    if unreadable:
        progress.say(f'{unreadable} training images could not be read; others were used instead')
    if training.skipped:
        progress.say(f'{training.skipped} steps were not finite and were skipped')
    evaluations = [e for e in writers.read(workdir / 'metrics.jsonl') if 'weights' in e]
    if evaluations:
        last = evaluations[-1]  # averaged weights are written after live ones
        line = metrics.results_line(last['split'], last['weights'], last)
        progress.say(f'final {line}, after {duration(progress.seconds)} of training')
    label = metrics.by_name(run.config.best).label
    shown = extras.present('tensorboardX')
    board = f' (TensorBoard: tensorboard --logdir {workdir})' if shown else ''
    progress.say(
        f'in {workdir}:\n'
        + ('  curves.png     the training curves\n' if extras.present('matplotlib') else '')
        + f'  metrics.jsonl  every number{board}\n'
        f'  checkpoints/   steps {", ".join(map(str, steps))}; best {label} at {best}'
        + (
            f' ({checkpoints.count} saved; training waited {checkpoints.blocked:.2f} s at most)\n'
            if checkpoints.count
            else '\n'
        )
        + '  config.json    all settings'
    )
