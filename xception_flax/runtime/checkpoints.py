"""Checkpoints: the state, the data position and the clock, written together by orbax."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from xception_flax.config import reading
from xception_flax.config.checks import build_model
from xception_flax.runtime.errors import UserError

# Of a checkpoint: the TrainState, and all else as JSON.
ITEMS = ('state', 'progress')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved.

    Attributes:
      state: the TrainState.
      position: global index of the next training example.
      seconds: time spent training so far, over all starts.
      top1: of the evaluation at this step, None without one; decides which checkpoint is best.
    """

    state: Any
    position: int = 0
    seconds: float = 0.0
    top1: float | None = None


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`: the newest ones and the best."""

    def __init__(self, workdir: pathlib.Path, keep_last: int = 3, keep_best: int = 1):
        self._policy = _NewestAndBest(keep_last, keep_best)
        self._manager = ocp.CheckpointManager(
            (workdir / 'checkpoints').absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=_EveryTime(), preservation_policy=self._policy
            ),
            item_names=ITEMS,
        )
        for step in self.steps():
            self._policy.top1[step] = self._progress(step)['top1']

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step whose evaluation had the best top-1 among those kept, or None."""
        best = self._policy.best(self.steps(), 1)
        return best[0] if best else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts to write a checkpoint; training may go on at once."""
        step = int(checkpoint.state.step)
        self._policy.top1[step] = checkpoint.top1
        progress = dataclasses.asdict(dataclasses.replace(checkpoint, state=None))
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(checkpoint.state),
                progress=ocp.args.JsonSave(progress),
            ),
        )
        if not saved:
            raise RuntimeError(f'orbax did not save step {step}; it has {self.steps()}')

    def restore(self, abstract: Any) -> Checkpoint | None:
        """Reads the newest checkpoint, or None if there is none.

        Args:
          abstract: a TrainState of `jax.ShapeDtypeStruct` with shardings, which say where to put
            each array.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )['state']
        return Checkpoint(**{**self._progress(step), 'state': state})

    def _progress(self, step: int) -> dict[str, Any]:
        """All of a checkpoint but its state."""
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)['progress']

    def wait(self) -> None:
        """Waits until all is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all is written, and lets go of the folder."""
        self._manager.close()


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
      UserError: there is no such run or checkpoint; says which there are.
    """
    if weights not in ('averaged', 'live'):
        raise UserError(f"weights is {weights!r}; choose from 'averaged' and 'live'")
    workdir = pathlib.Path(workdir).expanduser().absolute()
    config = reading.from_json(workdir / 'config.json')
    model = build_model(config, config.dataset.num_classes)
    size = config.image_size
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    averaged = weights == 'averaged' and config.ema_decay > 0

    folder = workdir / 'checkpoints'
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
    if not steps:
        raise UserError(f'{workdir} has no checkpoint yet')
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f'{workdir} has no checkpoint of step {step} but of {steps}')
    wanted = {'ema': target} if averaged else target
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        state = reader.restore(
            folder / str(step) / 'state',
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    return model, state['ema'] if averaged else state, config


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints and those of the best top-1.

    Orbax's own `BestN` forgets over a restart which were the best, unless it also warns of every
    checkpoint without an evaluation.
    """

    def __init__(self, keep_last: int, keep_best: int):
        self.keep_last, self.keep_best = keep_last, keep_best
        self.top1: dict[int, float | None] = {}

    def best(self, steps: Sequence[int], count: int) -> list[int]:
        """The best of the steps, of equally good ones the later."""
        measured = [step for step in steps if self.top1.get(step) is not None]
        return sorted(measured, key=lambda step: (self.top1[step], step))[::-1][:count]

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep_last :], *self.best(steps, self.keep_best)}
        return [step in kept for step in steps]


class _EveryTime(checkpoint_managers.SaveDecisionPolicy):
    """The loop decides when to save."""

    def should_save(self, step, previous_steps, *, context):
        return True
