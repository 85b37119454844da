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
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.data.scaling import scale
from xception_flax.training import losses, metrics, transfer
from xception_flax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def as_targets(labels: jax.Array, num_classes: int, loss: str) -> jax.Array:
    """Labels `[N]`, or `[N, C]` of 0 and 1, as targets `[N, C]` float32.

    For softmax, whose probabilities sum to 1, several classes of a picture have equal shares.
    """
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    targets = labels.astype(jnp.float32)
    if loss == 'softmax':
        targets /= jnp.maximum(targets.sum(1, keepdims=True), 1)
    return targets


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    frozen: Sequence[str] = (),
    platform: str = '',
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the function that does one update.

    The batch is {'image' `[N, S, S, 3]` uint8, 'label' `[N]` int32, or `[N, C]` of 0 and 1 where a
    picture may be of several classes}; the metrics are scalars, of the batch before the update. A
    step whose loss, gradient or new weights are not finite counts as 'skipped' and, with
    `config.nonfinite='skip'`, changes nothing but the counts of steps.

    With `config.accumulation` the batch is worked through in so many micro-batches: the gradient is
    their mean, and the running statistics move once, towards the mean of theirs. It is the step of
    one batch whose batch norm groups are the micro-batches, but that each draws its own dropout and
    mixup.

    Gradient, clipping and optimizer are of the parameters that learn; those of the modules in
    `frozen`, and their running statistics, by which they normalise, stay as they are. `platform` is
    that of `ops.lowerings`.
    """
    loss_of_pictures = losses.LOSSES[config.loss]

    def forward(params: Any, state: TrainState, batch: Batch, rng: jax.Array):
        mix_rng, dropout_rng = jax.random.split(rng)
        pictures = scale(batch['image'], config.preprocessing)
        targets = as_targets(batch['label'], model.num_classes, config.loss)
        targets = losses.smooth(targets, config.label_smoothing, config.loss)
        if config.mixup:
            share = jax.random.beta(mix_rng, config.mixup, config.mixup)
            share = jnp.maximum(share, 1 - share)  # the label's own picture is the larger part
            pictures = share * pictures + (1 - share) * jnp.roll(pictures, 1, 0)
            targets = share * targets + (1 - share) * jnp.roll(targets, 1, 0)
        variables = {
            'params': transfer.join(params, state.params),
            'batch_stats': state.batch_stats,
        }
        logits: Any
        with transfer.frozen_batch_norm(frozen), ops.lowerings(config.lowering, platform):
            logits, updates = model.apply(
                variables,
                pictures,
                train=True,
                mutable=['batch_stats', 'auxiliary'],
                rngs={'dropout': dropout_rng},
            )
        loss = loss_of_pictures(logits, targets).mean()
        top1 = metrics.in_top(logits, batch['label'], 1).mean()
        auxiliary = [
            loss_of_pictures(more, targets).mean()
            for more in jax.tree.leaves(updates.get('auxiliary', {}))
        ]
        total = loss + config.auxiliary_weight * sum(auxiliary)
        batch_stats, _ = transfer.split(updates.get('batch_stats', {}), frozen)
        return total, (batch_stats, {'loss': loss, 'top1': top1})

    def gradients(state: TrainState, batch: Batch, rng: jax.Array):
        params, _ = transfer.split(state.params, frozen)
        grads, (batch_stats, scalars) = jax.grad(forward, has_aux=True)(params, state, batch, rng)
        return grads, batch_stats, scalars

    def accumulated_gradients(state: TrainState, batch: Batch, rng: jax.Array):
        # Micro-batch i is pictures i, i + k, i + 2k, ...: each device then finds its part of every
        # micro-batch among the pictures that it holds already.
        k = config.accumulation
        parts = jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, part):
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
        params, _ = transfer.split(state.params, frozen)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = transfer.join(optax.apply_updates(params, updates), state.params)
        batch_stats = transfer.join(batch_stats, state.batch_stats)
        new = {'params': params, 'batch_stats': batch_stats}
        ema = None
        if state.ema is not None:
            # Early averages forget faster, as TensorFlow's ExponentialMovingAverage(num_updates).
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            # In this form what is frozen stays the same to the bit.
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

            def keep(new: jax.Array, old: jax.Array) -> jax.Array:
                counts = jnp.issubdtype(new.dtype, jnp.integer)  # they say where the schedule is
                return new if counts else jnp.where(finite, new, old)

            new_state = jax.tree.map(keep, new_state, state)
        return dataclasses.replace(new_state, step=state.step + 1), scalars

    return train_step


def make_eval_step(
    model: nn.Module,
    config: ConfigDict,
    class_weights: np.ndarray | None = None,
    subset: Sequence[int] = (),
    platform: str = '',
) -> Callable[[Any, Batch], dict[str, Any]]:
    """Makes the function that sums top-1, top-5, loss and number of examples over a batch.

    It takes the variables and a batch {'image', 'label', 'mask' `[N]`}. Pictures of mask 1 count;
    the others are filling (0) or could not be read (-1). With several crops of a picture, as `[N,
    crops, S, S, 3]`, their probabilities are averaged.

    Where a picture may be of several classes, top-1 and top-5 are right with any of them, and one
    that is of none does not count but as 'unlabelled'. For MAP@100 there are 'ap100', the sum over
    the 'weighted' pictures, and 'ranking', as of `metrics.rank`.

    Args:
      model: the network.
      config: the run's config.
      class_weights: `[C]`, for MAP@100; None for equal ones.
      subset: classes to which 'top1_subset' and 'top5_subset' are restricted; () for none.
      platform: as of `ops.lowerings`.
    """
    loss_of_pictures = losses.LOSSES[config.loss]
    within = np.isin(np.arange(model.num_classes), subset)

    def logits_of(variables: Any, pictures: jax.Array) -> Any:
        with ops.lowerings(config.lowering, platform):
            return model.apply(variables, scale(pictures, config.preprocessing), train=False)

    def eval_step(variables: Any, batch: Batch) -> dict[str, Any]:
        forward = functools.partial(logits_of, variables)
        pictures, labels, mask = batch['image'], batch['label'], batch['mask']
        if pictures.ndim == 5:  # one crop after the other, to save memory
            crops = jax.lax.map(forward, pictures.swapaxes(0, 1))
            logits = losses.MEANS[config.loss](crops)
        else:
            logits = forward(pictures)
        counted, several = mask > 0, labels.ndim == 2
        if several:
            counted &= (labels > 0).any(1)
        values = {
            'top1': metrics.in_top(logits, labels, 1),
            'top5': metrics.in_top(logits, labels, 5),
            'loss': loss_of_pictures(logits, as_targets(labels, model.num_classes, config.loss)),
            'examples': jnp.ones_like(mask),
        }
        if subset:
            restricted = jnp.where(within, logits, -jnp.inf)
            values['top1_subset'] = metrics.in_top(restricted, labels, 1)
            values['top5_subset'] = metrics.in_top(restricted, labels, 5)
        result: dict[str, Any] = {}
        if several:
            # Softmax's logits say nothing of one picture against another, its probabilities do.
            scores = jax.nn.log_softmax(logits) if config.loss == 'softmax' else logits
            result['ranking'] = metrics.rank(scores, labels, counted)
            weights = np.ones(labels.shape[1]) if class_weights is None else class_weights
            found = metrics.average_precision(result['ranking'], labels, jnp.asarray(weights))
            values['ap100'] = jnp.nan_to_num(found)
            values['weighted'] = ~jnp.isnan(found)
        result |= {name: jnp.sum(jnp.where(counted, v, 0)) for name, v in values.items()}
        result['unreadable'] = jnp.sum(mask < 0)
        if several:
            result['unlabelled'] = jnp.sum((mask > 0) & ~counted)
        return result | ({'stop': jnp.max(batch['stop'])} if 'stop' in batch else {})

    return eval_step
