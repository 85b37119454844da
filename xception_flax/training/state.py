"""All that a training step reads and writes."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """The state of a run; a checkpoint is this, the data position and the clock.

    Attributes:
      step: number of updates so far, int32.
      params: parameters, float32 (float64 in a run of that type).
      batch_stats: running statistics of batch norm, of the same type.
      opt_state: the optimizer's.
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
        """What `model.apply` takes: the 'live' weights, or the 'averaged' ones."""
        if weights == 'averaged':
            assert self.ema is not None
            return self.ema
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def weights(self) -> tuple[str, ...]:
        """The kinds of weights that there are."""
        return ('live',) if self.ema is None else ('live', 'averaged')


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    averaged: bool,
    rng: jax.Array,
) -> TrainState:
    """Draws the initial state; trace it with `jax.eval_shape` to learn its shapes at no cost."""
    init_rng, rng = jax.random.split(rng)
    variables = model.init(init_rng, jnp.zeros((1, image_size, image_size, 3)), train=False)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema={'params': params, 'batch_stats': batch_stats} if averaged else None,
        rng=jax.random.key_data(rng),
    )
