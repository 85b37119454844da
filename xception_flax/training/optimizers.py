"""Optimizers and learning-rate schedules by name, built from optax."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from xception_flax.config.durations import Durations
from xception_flax.training import layer_decay


def kernels(params: Any) -> Any:
    """Which parameters are kernels, not biases or batch norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def _decayed(o: ConfigDict) -> Callable[[Any], Any]:
    """Which parameters weight decay acts on: kernels, perhaps without the depthwise ones."""

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, kernel: kernel and (o.decay_depthwise or path[-2:][0].key != 'depthwise'),
            kernels(params),
        )

    return mask


def _sgd(o: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    l2 = optax.add_decayed_weights(o.weight_decay, _decayed(o))
    return optax.chain(l2, optax.sgd(schedule, o.momentum, o.nesterov))


def _rmsprop(o: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    # As in TensorFlow 1, which the papers used: epsilon inside the root, the mean square starting
    # at 1, the learning rate inside the momentum.
    rms = optax.rmsprop(
        schedule, o.decay, o.epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=o.momentum
    )
    return optax.chain(optax.add_decayed_weights(o.weight_decay, _decayed(o)), rms)


def _adamw(o: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, o.beta1, o.beta2, o.epsilon, weight_decay=o.weight_decay, mask=_decayed(o)
    )


def _lars(o: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lars(
        schedule, o.weight_decay, _decayed(o), trust_ratio_mask=kernels,
        momentum=o.momentum, nesterov=o.nesterov,
    )  # fmt: skip


def _lamb(o: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    # optax.lamb, but biases and batch norm go by plain Adam, as in LARS: a bias starts at zero, and
    # so would its updates.
    return optax.chain(
        optax.scale_by_adam(o.beta1, o.beta2, o.epsilon),
        optax.add_decayed_weights(o.weight_decay, _decayed(o)),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(schedule),
    )


OPTIMIZERS: dict[str, Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]] = {
    'sgd': _sgd,
    'rmsprop': _rmsprop,
    'adamw': _adamw,
    'lars': _lars,
    'lamb': _lamb,
}


def _exponential(s: ConfigDict, durations: Durations) -> optax.Schedule:
    return optax.exponential_decay(
        s.learning_rate,
        durations.decay,
        s.decay_rate,
        staircase=s.staircase,
        end_value=s.learning_rate * s.final,
    )


SCHEDULES: dict[str, Callable[[ConfigDict, Durations], optax.Schedule]] = {
    'constant': lambda s, durations: optax.constant_schedule(s.learning_rate),
    'exponential': _exponential,
    'cosine': lambda s, durations: optax.cosine_decay_schedule(
        s.learning_rate, durations.total - durations.warmup, s.final
    ),
}


def make_schedule(config: ConfigDict, durations: Durations) -> optax.Schedule:
    """The learning rate by step: a linear warm-up from 0, then the schedule by name."""
    schedule = SCHEDULES[config.schedule.name](config.schedule, durations)
    if not durations.warmup:
        return schedule
    warmup = optax.linear_schedule(0.0, config.schedule.learning_rate, durations.warmup)
    return optax.join_schedules([warmup, schedule], [durations.warmup])


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, multipliers: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """Makes the optimizer; the gradient is clipped by its norm before L2 is added.

    Its state does not depend on clipping and multipliers, so a resumed run may change them.

    Args:
      config: the run's config.
      schedule: the learning rate by step.
      multipliers: factor of the learning rate by block; see `layer_decay.layer_multipliers`.
    """
    limit = config.optimizer.clip_norm
    clip = optax.clip_by_global_norm(limit) if limit else optax.identity()
    optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, schedule)
    # Updates are linear in the learning rate, also with momentum.
    by_layer = layer_decay.scale_by_layer(multipliers) if multipliers else optax.identity()
    return optax.chain(clip, optimizer, by_layer)
