"""Where in a picture a network finds what speaks for a class."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax.runtime.errors import UserError


def class_activation_maps(
    model: nn.Module,
    variables: Any,
    x: jax.Array,
    at: str,
    classes: Sequence[int] | None = None,
) -> jax.Array:
    """Maps of how much each place speaks for a class: Grad-CAM (Selvaraju et al., 2017).

    At the last features ('exit_flow' of Xception) it is the class activation map of Zhou et al.
    (2016), but for a factor and for its negative part; at earlier ones it is finer.

    Args:
      model: the network.
      variables: its variables.
      x: pictures as the network takes them (`preprocess`), `[N, H, W, 3]`.
      at: path of the module whose output is looked at, such as 'entry_flow/block2'.
      classes: a class for each picture; by default the most probable one.

    Returns:
      `[N, h, w]`, 0 or more, as large as the module's output.

    Raises:
      UserError: there is no such module, or its output has no places, or is not used.
    """

    @jax.jit
    def forward(delta: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        """Logits, and the module's output; `delta` is added to it."""
        seen: list[jax.Array] = []

        def add(method, args, kwargs, context):
            output = method(*args, **kwargs)
            if '/'.join(context.module.path) != at or context.method_name != '__call__':
                return output
            features, *rest = output if isinstance(output, tuple) else (output,)
            seen.append(features)
            return (features + delta, *rest) if rest else features + delta

        with nn.intercept_methods(add):
            logits: Any = model.apply(variables, x, train=False)
        if not seen or seen[0].ndim != 4:
            raise UserError(f'{type(model).__name__} has no features at {at!r}')
        return logits, seen[0]

    logits, features = forward(0.0)
    chosen = jnp.argmax(logits, -1) if classes is None else jnp.asarray(classes)

    @jax.jit
    def score(delta: jax.Array) -> jax.Array:
        return jnp.take_along_axis(forward(delta)[0], chosen[:, None], -1).sum()

    gradient = jax.grad(score)(jnp.zeros_like(features))
    if not gradient.any():
        raise UserError(
            f'the logits do not depend on what {at!r} gives: with a pointwise convolution a '
            'depthwise one is a single operation; take that one'
        )
    weights = jnp.mean(gradient, (1, 2), keepdims=True)
    return nn.relu(jnp.sum(weights * features, -1))
