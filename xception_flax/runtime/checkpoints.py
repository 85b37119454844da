"""Checkpoints: the state, the data position and the clock, written together by orbax."""

import concurrent.futures
import dataclasses
import json
import pathlib
import time
import zlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from xception_flax.config import reading
from xception_flax.config.checks import build_model
from xception_flax.runtime import hosts
from xception_flax.runtime.errors import UserError

# Of a checkpoint: the TrainState, and all else as JSON.
ITEMS = ('state', 'progress')
DAMAGED = '.damaged'
PATIENCE = 600  # seconds that a checkpoint may take to be written


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved.

    Attributes:
      state: the TrainState.
      position: global index of the next training example.
      examples: number of training examples, which the position is in terms of.
      seconds: time spent training so far, over all starts.
      skipped: number of steps left out so far, as they were not finite.
      skipped_in_row: how many of them were the last ones.
    """

    state: Any
    position: int = 0
    examples: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`: the newest ones and the best.

    Each holds a checksum of every array. One that does not read back as it was written is
    passed over for the one before, and moved aside, not deleted.

    Attributes:
      top1: of the evaluations so far, by step; the owner adds to it. It decides which is best.
      count, blocked: number of checkpoints saved, and the longest time that one held training up.
    """

    def __init__(
        self, workdir: pathlib.Path, keep_last: int = 3, keep_best: int = 1,
        top1: dict[int, float] | None = None,
    ):  # fmt: skip
        self.top1 = {} if top1 is None else top1
        self.count, self.blocked = 0, 0.0
        self.folder = (workdir / 'checkpoints').absolute()
        self._policy = _NewestAndBest(keep_last, keep_best, self.top1)
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
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step whose evaluation had the best top-1 among those kept, or None."""
        best = self._policy.best(self.steps(), 1)
        return best[0] if best else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts to write a checkpoint; training may go on at once.

        Raises:
          UserError: the disk does not take it, or did not take the one before.
        """
        began = time.perf_counter()
        # A copy: the next step will use up the device's arrays. It is the same on all hosts, and
        # the first writes it.
        state = jax.tree.map(np.array, checkpoint.state)
        step = int(state.step)
        rest = dataclasses.asdict(dataclasses.replace(checkpoint, state=None))
        del rest['state']
        progress = {**rest, 'checksums': checksums(state)}
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
        """Reads the newest checkpoint that is whole.

        Args:
          abstract: a TrainState of `jax.ShapeDtypeStruct` with shardings, which say where to put
            each array.

        Returns:
          The checkpoint, None if none was ever written; and what is wrong with those passed over.

        Raises:
          UserError: there are checkpoints, but none of them is whole.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            checkpoint, reason = self._read(step, abstract)
            if hosts.gather(np.bool_(checkpoint is not None)).all():
                if damaged:
                    self._move_aside([other for other in self.steps() if other > step])
                return checkpoint, damaged
            reason = reason or 'another process cannot read it'
            damaged.append(f'checkpoint {self.folder / str(step)} is damaged ({reason})')
        if damaged:
            raise UserError(
                f'no checkpoint in {self.folder} can be read: {"; ".join(damaged)}. '
                'To start anew, give another --workdir'
            )
        return None, []

    def _move_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step in steps if jax.process_index() == 0 else ():
            names = (f'{step}{DAMAGED}{n}' for n in ('', *range(2, 1000)))
            aside = next(self.folder / name for name in names if not (self.folder / name).exists())
            (self.folder / str(step)).rename(aside)
        hosts.gather(np.bool_(True))  # all wait for the renaming
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
                return None, 'progress: other bytes than were written'
            expected = progress.pop('checksums')
            for path, value in checksums(state).items():
                if expected[path] != value:
                    return None, f'{path}: other bytes than were written'
        except Exception as error:  # orbax and tensorstore raise what they like
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
        if isinstance(error, jax.errors.JaxRuntimeError) and hosts.several():
            return error
        good = [step for step in self.steps() if (self.folder / str(step)).is_dir()]
        newest = f'the newest whole one is of step {good[-1]}' if good else 'there is none yet'
        return UserError(
            f'a checkpoint could not be written to {self.folder} ({_first_line(error)}); {newest}'
        )


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of every array's bytes, by its path; the arrays are the same on every device."""

    def checksum(x: Any) -> int:
        return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(checksum, [x for _, x in leaves]), strict=True))


def _crc(progress: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def load_checkpoint(
    workdir: str | pathlib.Path, step: int | None = None, weights: str = 'averaged'
) -> tuple[nn.Module, dict[str, Any], ConfigDict]:
    """Loads a trained network, on any kind and number of devices.

    Args:
      workdir: where the run was trained.
      step: which of its checkpoints; None for the newest.
      weights: 'averaged' (what is evaluated; the live ones where the run did not average) or
        'live'.

    Returns:
      The model, its variables for `model.apply`, and the run's config.

    Raises:
      UserError: there is no such run or checkpoint, or it is damaged; says which there are.
    """
    if weights not in ('averaged', 'live'):
        raise UserError(f"weights is {weights!r}; choose from 'averaged' and 'live'")
    model, variables, config = load_all_weights(workdir, step)
    return model, variables.get(weights, variables['live']), config


def load_all_weights(
    workdir: str | pathlib.Path, step: int | None = None
) -> tuple[nn.Module, dict[str, dict[str, Any]], ConfigDict]:
    """Like `load_checkpoint`, with the variables of all weights: 'live' and perhaps 'averaged'."""
    workdir = pathlib.Path(workdir).expanduser().absolute()
    config = reading.from_json(workdir / 'config.json')
    if config.dtype == 'float64' and not jax.config.read('jax_enable_x64'):
        raise UserError(
            f"{workdir} was trained in float64: jax.config.update('jax_enable_x64', True) first"
        )
    model = build_model(config, config.dataset.num_classes)
    size = config.image_size
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    live = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    wanted = {**live, 'ema': live} if config.ema_decay else live

    folder = workdir / 'checkpoints'
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
    if not steps:
        raise UserError(f'{workdir} has no checkpoint yet')
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f'{workdir} has no checkpoint of step {step} but of {steps}')
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
        changed = [path for path, value in checksums(state).items() if sums[path] != value]
        reason = f'{changed[0]}: other bytes than were written' if changed else ''
    except Exception as error:  # orbax and tensorstore raise what they like
        reason = f'{type(error).__name__}: {_first_line(error)}'
    if reason:
        raise UserError(
            f'the checkpoint of step {step} in {workdir} is damaged ({reason}); there are {steps}'
        )
    averaged = state.pop('ema', None)
    return model, {'live': state} | ({'averaged': averaged} if averaged else {}), config


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints and those of the best top-1.

    Orbax's own `BestN` forgets over a restart which were the best, unless it also warns of every
    checkpoint without an evaluation.
    """

    def __init__(self, keep_last: int, keep_best: int, top1: dict[int, float]):
        self.keep_last, self.keep_best, self.top1 = keep_last, keep_best, top1

    def best(self, steps: Sequence[int], count: int) -> list[int]:
        """The best of the steps, of equally good ones the later."""
        measured = [step for step in steps if step in self.top1]
        return sorted(measured, key=lambda step: (self.top1[step], step))[::-1][:count]

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep_last :], *self.best(steps, self.keep_best)}
        return [step in kept for step in steps]


class _EveryTime(checkpoint_managers.SaveDecisionPolicy):
    """The loop decides when to save."""

    def should_save(self, step, previous_steps, *, context):
        return True
