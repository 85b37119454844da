"""All that a training step reads and writes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from xception_flax import ops
from xception_flax.training import transfer

Tree = Any


@flax.struct.dataclass
class TrainState:
    """The state of a run; a checkpoint is this, the data position and the clock.

    Attributes:
      step: number of updates so far, int32.
      params: parameters, float32 (float64 in a run of that type).
      batch_stats: running statistics of batch norm, of the same type.
      opt_state: the optimizer's, of the parameters that learn.
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
    loaded: dict[str, Tree] | None = None,
    frozen: Sequence[str] = (),
) -> TrainState:
    """Draws the initial state; trace it with `jax.eval_shape` to learn its shapes at no cost.

    Args:
      model: the network.
      optimizer: the optimizer.
      image_size: side of the pictures, in pixels.
      averaged: whether there are moving averages.
      rng: key to draw from.
      loaded: variables to start from, with None for those that are to be drawn.
      frozen: paths of the modules that do not learn.
    """
    init_rng, rng = jax.random.split(rng)
    with ops.lowerings('reference'):  # the quickest to trace; what it computes is dropped
        variables = model.init(init_rng, jnp.zeros((1, image_size, image_size, 3)), train=False)
    start = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
    start = start if loaded is None else transfer.join(loaded, start)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start['params'],
        batch_stats=start['batch_stats'],
        opt_state=optimizer.init(transfer.split(start['params'], frozen)[0]),
        ema=dict(start) if averaged else None,
        rng=jax.random.key_data(rng),
    )
