"""One training step and one evaluation step: pure functions of state and batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.base import mesh as meshes
from xception_flax.data.scaling import scale
from xception_flax.runtime.checkpoints import TrainState
from xception_flax.training import freezing, losses, metrics
from xception_flax.training.metrics import Task

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    frozen: Sequence[str] = (),
    mesh: Mesh | None = None,
    loss_weights: np.ndarray | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the function that does one update.

    The batch is {'image' `[N, S, S, 3]` uint8, 'label' `[N]` int32, or `[N, C]` of 0 and 1 where
    images are multi-label}; the metrics are scalars, of the batch before the update. A step whose
    loss, gradient or new weights are not finite is counted in 'skipped'; with
    `config.nonfinite='skip'` it changes nothing but the step and the clock of the schedule.

    With `config.accumulation` the batch is processed in that many micro-batches: the gradient is
    their mean, and the running statistics move once, towards the mean of theirs. This is the step
    of one batch whose batch-norm groups are the micro-batches, except that each draws its own
    dropout and mixup.

    Only trainable parameters get gradients, clipping and updates. `frozen` modules keep their
    parameters and statistics and normalise as in inference; with `config.frozen_statistics` all do
    the latter two.

    Args:
      model: the network.
      optimizer: the optimizer.
      schedule: the learning rate by step.
      config: the run's config.
      frozen: paths of the frozen modules.
      mesh: the devices to compile for, over which the batch is sharded; None if not known.
      loss_weights: of the classes, `[C]`, by which each target is multiplied; the loss stays the
        mean over images, as with Keras's `class_weight`. None for equal ones.
    """
    compiled_for = _compiled_for(mesh)
    loss_of_images = losses.LOSSES[config.loss]
    task = Task(config.loss, np.ones(model.num_classes))
    inferring = freezing.EVERYTHING if config.frozen_statistics else frozen

    def forward(params: Any, state: TrainState, batch: Batch, rng: jax.Array) -> tuple[Any, Any]:
        mix_rng, dropout_rng = jax.random.split(rng)
        images = scale(batch['image'], config.preprocessing)
        targets = losses.as_targets(batch['label'], model.num_classes, config.loss)
        targets = losses.smooth(targets, config.label_smoothing, config.loss)
        if config.mixup:
            part = jax.random.beta(mix_rng, config.mixup, config.mixup)
            part = jnp.maximum(part, 1 - part)  # the image that the label belongs to dominates
            images = part * images + (1 - part) * jnp.roll(images, 1, 0)
            targets = part * targets + (1 - part) * jnp.roll(targets, 1, 0)
        if loss_weights is not None:
            targets = targets * loss_weights
        variables = {
            'params': freezing.merge(params, state.params),
            'batch_stats': state.batch_stats,
        }
        logits: Any
        with freezing.frozen_batch_norm(inferring), ops.lowerings(config.lowering, *compiled_for):
            logits, updates = model.apply(
                variables,
                images,
                train=True,
                mutable=['batch_stats', 'auxiliary'],
                rngs={'dropout': dropout_rng},
            )
        loss = loss_of_images(logits, targets).mean()
        auxiliary = [
            loss_of_images(more, targets).mean()
            for more in jax.tree.leaves(updates.get('auxiliary', {}))
        ]
        total = loss + config.auxiliary_weight * sum(auxiliary)
        batch_stats, _ = freezing.partition(updates.get('batch_stats', {}), inferring)
        shown = metrics.logged(logits, batch['label'], task)
        return total, (batch_stats, {'loss': loss, **shown})

    def gradients(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[Any, Any, Metrics]:
        params, _ = freezing.partition(state.params, frozen)
        grads, (batch_stats, scalars) = jax.grad(forward, has_aux=True)(params, state, batch, rng)
        return grads, batch_stats, scalars

    def accumulated_gradients(
        state: TrainState, batch: Batch, rng: jax.Array
    ) -> tuple[Any, Any, Metrics]:
        # Micro-batch i is images i, i + k, i + 2k, ..., so that each device already holds its part
        # of every micro-batch.
        k = config.accumulation
        parts = jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            new = gradients(state, part[0], jax.random.fold_in(rng, part[1]))
            return jax.tree.map(jnp.add, total, new), None

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(gradients, state, jax.tree.map(lambda x: x[0], parts), rng),
        )
        total, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(k)))
        return jax.tree.map(lambda x: x / k, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        compute = accumulated_gradients if config.accumulation > 1 else gradients
        grads, batch_stats, scalars = compute(state, batch, rng)
        params, _ = freezing.partition(state.params, frozen)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = freezing.merge(optax.apply_updates(params, updates), state.params)
        batch_stats = freezing.merge(batch_stats, state.batch_stats)
        new = {'params': params, 'batch_stats': batch_stats}
        ema = None
        if state.ema is not None:
            # Early averages forget faster, as ExponentialMovingAverage(num_updates) of TensorFlow.
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            # In this form frozen parameters stay the same to the bit.
            ema = jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), state.ema, new)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(scalars['loss'] + norm + optax.tree.norm(params))
        scalars |= {
            'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
            'gradient_norm': norm,
            'skipped': 1 - finite.astype(jnp.float32),
        }
        if 'stop' in batch:
            scalars['stop'] = jnp.max(batch['stop'])
        new_state = dataclasses.replace(
            state, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
        )
        if config.nonfinite == 'skip':

            def keep(new: Any, old: Any) -> Any:
                # The schedule goes on; Adam's count does not, since its averages do not.
                return new if is_clock(new) else jnp.where(finite, new, old)

            new_state = jax.tree.map(keep, new_state, state, is_leaf=is_clock)
        return dataclasses.replace(new_state, step=state.step + 1), scalars

    return train_step


def _compiled_for(mesh: Mesh | None) -> tuple:
    """Arguments of `ops.lowerings`: the kind of device, and how batches are sharded."""
    return () if mesh is None else (mesh.devices.flat[0].platform, meshes.sharded(mesh))


def choose_operations(
    model: nn.Module,
    variables: Any,
    config: ConfigDict,
    mesh: Mesh,
    sizes: Sequence[int],
    say: Callable[[str], None],
) -> None:
    """Chooses the faster form of each layer on the devices, before a step is traced (`ops.trial`).

    Args:
      model: the network.
      variables: its variables, or their shapes.
      config: the run's config.
      mesh: the devices.
      sizes: numbers of images that the network gets at once.
      say: prints a line.
    """

    def trace() -> None:
        for size in dict.fromkeys(sizes):
            shape = size, config.image_size, config.image_size, 3
            images = jax.ShapeDtypeStruct(shape, jnp.float32)
            jax.eval_shape(functools.partial(model.apply, train=False), variables, images)

    if config.lowering == 'auto':
        from xception_flax.ops import trial  # which needs what is experimental in JAX

        trial.choose(trace, meshes.sharded(mesh), say)


def is_clock(part: Any) -> bool:
    """Whether a part of an optimizer's state is the count of steps that a schedule follows."""
    return isinstance(part, optax.ScaleByScheduleState)


def make_eval_step(
    model: nn.Module, config: ConfigDict, task: Task, mesh: Mesh | None = None
) -> Callable[[Any, Batch], dict[str, Any]]:
    """Makes the function that measures a batch.

    It takes the variables and a batch {'image', 'label', 'mask' `[N]`}. Images of mask 1 count; the
    others are padding (0) or could not be read (-1), and multi-label images without a label do not
    count. With several crops per image, `[N, crops, S, S, 3]`, probabilities are averaged.

    It gives {'metrics': totals by metric (`metrics.updates`), 'counts': numbers of 'examples' that
    count, 'unreadable' and 'unlabelled' ones} and perhaps 'stop'.

    Args:
      model: the network.
      config: the run's config.
      task: what the metrics need to know.
      mesh: as for `make_train_step`.
    """
    compiled_for = _compiled_for(mesh)

    def logits_of(variables: Any, images: jax.Array) -> Any:
        with ops.lowerings(config.lowering, *compiled_for):
            return model.apply(variables, scale(images, config.preprocessing), train=False)

    def eval_step(variables: Any, batch: Batch) -> dict[str, Any]:
        forward = functools.partial(logits_of, variables)
        images, labels, mask = batch['image'], batch['label'], batch['mask']
        if images.ndim == 5:  # one crop after the other, to save memory
            logits = losses.MEANS[config.loss](jax.lax.map(forward, images.swapaxes(0, 1)))
        else:
            logits = forward(images)
        labelled = (labels > 0).any(1) if labels.ndim == 2 else jnp.ones(len(labels), bool)
        counted = (mask > 0) & labelled
        result = {
            'metrics': metrics.updates(logits, labels, counted, task),
            'counts': {
                'examples': jnp.sum(counted),
                'unreadable': jnp.sum(mask < 0),
                'unlabelled': jnp.sum((mask > 0) & ~labelled),
            },
        }
        return result | ({'stop': jnp.max(batch['stop'])} if 'stop' in batch else {})

    return eval_step
