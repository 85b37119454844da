"""Checkpoints, written and read by orbax, and what is in one.

A checkpoint is a `TrainState` (weights, optimizer, averages), the position in the training data and
the clock; all else follows from the settings. `workdir/checkpoints/STEP/` holds it in two items:
'state' (arrays) and 'progress' (JSON: all other fields of `Checkpoint`, and a checksum per array).
"""

import concurrent.futures
import dataclasses
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from xception_flax.base import paths, processes
from xception_flax.base.errors import UserError, described

Tree = Any

ITEMS = ('state', 'progress')
DAMAGED = '.damaged'
CHANGED = 'other bytes than were written'
PATIENCE = 600  # seconds that writing a checkpoint may take


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    Attributes:
      step: number of updates so far, int32.
      params: parameters, float32 (float64 in a run of that type).
      batch_stats: running statistics of batch norm, of the same type.
      opt_state: state of the optimizer, of the trainable parameters.
      ema: moving averages {'params', 'batch_stats'}, or None when averaging is off.
      rng: key from which each step derives its own.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    ema: dict[str, Tree] | None
    rng: jax.Array

    def variables(self, weights: str) -> dict[str, Tree]:
        """The argument of `model.apply`: the 'live' weights, or the 'averaged' ones."""
        if weights == 'averaged':
            assert self.ema is not None
            return self.ema
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def weights(self) -> tuple[str, ...]:
        """The kinds of weights that the state has."""
        return ('live',) if self.ema is None else ('live', 'averaged')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved.

    Attributes:
      state: weights, optimizer, averages.
      position: global index of the next training example.
      examples: size of the training set that `position` indexes into.
      seconds: time spent training so far, over all starts.
      skipped: number of steps skipped so far because they were not finite.
      skipped_in_row: number of skipped steps at the end.
    """

    state: TrainState
    position: int = 0
    examples: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`: the newest ones and the best.

    A checkpoint whose arrays do not have their checksums is renamed, never deleted, and the one
    before it is restored.

    Attributes:
      count, blocked: number of checkpoints saved, and the longest time training waited for one, in
        seconds.
    """

    def __init__(
        self, workdir: paths.Path, keep_last: int = 3, keep_best: int = 1,
        scores: dict[int, float] | None = None,
    ):  # fmt: skip
        """Opens the folder; `scores` by step say which are the best, and the owner adds to them."""
        self.count, self.blocked = 0, 0.0
        self.folder = paths.folder(workdir) / 'checkpoints'
        self._policy = _NewestAndBest(keep_last, keep_best, {} if scores is None else scores)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=_EveryTime(),
                preservation_policy=self._policy,
                async_options=ocp.AsyncOptions(timeout_secs=PATIENCE),
            ),
            item_names=ITEMS,
        )

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest score among those kept, or None."""
        best = self._policy.best(self.steps(), 1)
        return best[0] if best else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts to write a checkpoint; training may continue at once.

        Raises:
          UserError: the disk does not take it, or did not take the one before.
        """
        began = time.perf_counter()
        # A copy: the next step donates the arrays on the device. All processes have the same, and
        # the first one writes it.
        state = jax.tree.map(np.array, checkpoint.state)
        step = int(state.step)
        names = [f.name for f in dataclasses.fields(Checkpoint) if f.name != 'state']
        progress = {name: getattr(checkpoint, name) for name in names}
        progress['checksums'] = checksums(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave({**progress, 'crc': _crc(progress)}),
        )
        try:
            saved = self._manager.save(step, args=args)
        except Exception as error:
            raise self._failure(error) from error
        if not saved:
            raise RuntimeError(f'orbax did not save step {step}; it has {self.steps()}')
        self.count += 1
        self.blocked = max(self.blocked, time.perf_counter() - began)

    def restore(self, abstract: Any) -> tuple[Checkpoint | None, list[str]]:
        """Reads the newest whole checkpoint.

        Args:
          abstract: a TrainState of `jax.ShapeDtypeStruct` with shardings, which say where each
            array goes.

        Returns:
          The checkpoint, None if there is none; and for each damaged one, what is wrong.

        Raises:
          UserError: there are checkpoints, but none of them is whole.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            checkpoint, reason = self._read(step, abstract)
            if processes.gather(np.bool_(checkpoint is not None)).all():
                if damaged:
                    self._move_aside([other for other in self.steps() if other > step])
                return checkpoint, damaged
            reason = reason or 'another process cannot read it'
            damaged.append(f'checkpoint {self.folder / str(step)} is damaged ({reason})')
        if damaged:
            raise UserError(
                f'no checkpoint in {self.folder} can be read: {"; ".join(damaged)}. '
                'To start from scratch, give another --workdir'
            )
        return None, []

    def _move_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step in steps if jax.process_index() == 0 else ():
            names = (f'{step}{DAMAGED}{n}' for n in ('', *range(2, 1000)))
            aside = next(self.folder / name for name in names if not (self.folder / name).exists())
            paths.move_folder(self.folder / str(step), aside)
        processes.gather(np.bool_(True))  # all wait for the renaming
        self._manager.reload()

    def _read(self, step: int, abstract: Any) -> tuple[Checkpoint | None, str]:
        """The checkpoint, or None and what is wrong with it."""
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        try:
            items = self._manager.restore(step, args=args)
            state, progress = items['state'], dict(items['progress'])
            if progress.pop('crc') != _crc(progress):
                return None, f'progress: {CHANGED}'
            if changed := _changed(state, progress.pop('checksums')):
                return None, f'{changed}: {CHANGED}'
        except Exception as error:  # orbax and tensorstore raise exceptions of many types
            return None, f'{type(error).__name__}: {_first_line(error)}'
        return Checkpoint(state, **progress), ''

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
          UserError: the disk did not take it.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Waits until all is written, and lets go of the folder."""
        self.wait()
        self._manager.close()

    def _failure(self, error: Exception) -> Exception:
        """What to raise: when another process is gone, nothing is wrong with the disk."""
        if isinstance(error, jax.errors.JaxRuntimeError) and processes.several():
            return error
        good = [step for step in self.steps() if (self.folder / str(step)).is_dir()]
        newest = f'the newest whole one is of step {good[-1]}' if good else 'there is none yet'
        reason = described(error) if paths.in_bucket(self.folder) else _first_line(error)
        return UserError(f'a checkpoint could not be written to {self.folder} ({reason}); {newest}')


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of each array, by its path; the arrays are the same on every device."""

    def checksum(x: Any) -> int:
        return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(checksum, [x for _, x in leaves]), strict=True))


def _changed(tree: Tree, expected: dict[str, int]) -> str:
    """The path of the first array whose checksum is another than expected; '' if none."""
    found = checksums(tree).items()
    return next((path for path, value in found if expected[path] != value), '')


def _crc(progress: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def saved_steps(workdir: paths.Path) -> list[int]:
    """The steps of a run's checkpoints, in order."""
    folder = workdir / 'checkpoints'
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def load_variables(
    workdir: paths.Path, step: int | None, shapes: dict[str, Tree], averaged: bool
) -> dict[str, Tree]:
    """Reads the weights of a checkpoint to the first local device, and nothing else of it.

    Args:
      workdir: the folder of the run, absolute.
      step: which of its checkpoints; None for the newest.
      shapes: shapes and types of the variables.
      averaged: whether to read the averages, and not the live weights.

    Raises:
      UserError: there is no such checkpoint, or it is damaged; says which there are.
    """
    folder, steps = workdir / 'checkpoints', saved_steps(workdir)
    if not steps:
        raise UserError(f'{workdir} has no checkpoint yet')
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f'{workdir} has no checkpoint of step {step} but of {steps}')
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    wanted = {'ema': wanted} if averaged else wanted
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            sums = reader.restore(folder / str(step) / 'progress')['checksums']
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            args = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            )
            state = reader.restore(folder / str(step) / 'state', args=args)
        changed = _changed(state, sums)
        reason = f'{changed}: {CHANGED}' if changed else ''
    except Exception as error:  # orbax and tensorstore raise exceptions of many types
        reason = f'{type(error).__name__}: {_first_line(error)}'
    if reason:
        raise UserError(
            f'the checkpoint of step {step} in {workdir} is damaged ({reason}); there are {steps}'
        )
    return state['ema'] if averaged else state


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints and those of the highest score.

    `BestN` of orbax forgets over a restart which were the best, unless it also warns of every
    checkpoint without an evaluation.
    """

    def __init__(self, keep_last: int, keep_best: int, scores: dict[int, float]):
        self.keep_last, self.keep_best, self.scores = keep_last, keep_best, scores

    def best(self, steps: Sequence[int], count: int) -> list[int]:
        """The steps of the highest scores, of equal ones the later."""
        measured = [step for step in steps if step in self.scores]
        return sorted(measured, key=lambda step: (self.scores[step], step))[::-1][:count]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep_last :], *self.best(steps, self.keep_best)}
        return [step in kept for step in steps]


class _EveryTime(checkpoint_managers.SaveDecisionPolicy):
    """The loop decides when to save."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True
