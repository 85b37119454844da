"""The initial state of a run (`runtime.checkpoints.TrainState`)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from xception_flax import ops
from xception_flax.runtime.checkpoints import TrainState
from xception_flax.training import freezing


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    averaged: bool,
    rng: jax.Array,
    loaded: dict[str, Any] | None = None,
    frozen: Sequence[str] = (),
) -> TrainState:
    """Initialises the state; `jax.eval_shape` of it gives the shapes without computing anything.

    `loaded` has variables to start from, and None for those to initialise.
    """
    init_rng, rng = jax.random.split(rng)
    with ops.lowerings('reference'):  # the quickest to trace; the outputs are dropped
        variables = model.init(init_rng, jnp.zeros((1, image_size, image_size, 3)), train=False)
    start = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
    start = start if loaded is None else freezing.merge(loaded, start)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start['params'],
        batch_stats=start['batch_stats'],
        opt_state=optimizer.init(freezing.partition(start['params'], frozen)[0]),
        ema=dict(start) if averaged else None,
        rng=jax.random.key_data(rng),
    )
