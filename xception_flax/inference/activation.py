"""Class activation maps: where in an image the evidence for a class is."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xception_flax import ops
from xception_flax.base.errors import UserError


def class_activation_maps(
    model: nn.Module,
    variables: Any,
    x: jax.Array,
    at: str,
    classes: Sequence[int] | None = None,
) -> jax.Array:
    """The evidence for a class at each position: Grad-CAM (Selvaraju et al., 2017).

    At the last features ('exit_flow' of Xception) it is the class activation map of Zhou et al.
    (2016) without its negative part, up to a factor; at earlier ones it is finer.

    Args:
      model: the network.
      variables: its variables.
      x: preprocessed images, `[N, H, W, 3]`.
      at: path of the module whose output is mapped, such as 'entry_flow/block2'.
      classes: a class per image; by default the most probable one.

    Returns:
      `[N, h, w]`, 0 or more, of the size of the module's output.

    Raises:
      UserError: there is no such module, or its output is not `[N, h, w, C]`.
    """

    # Weights and images are arguments, since XLA computes ahead with constants.
    @jax.jit
    def forward(variables: Any, x: jax.Array, delta: jax.Array | float) -> tuple[Any, jax.Array]:
        """Logits, and the module's output; `delta` is added to it."""
        seen: list[jax.Array] = []

        def add(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = method(*args, **kwargs)
            if context.method_name != '__call__' or '/'.join(context.module.path) != at:
                return output
            features, *rest = output if isinstance(output, tuple) else (output,)
            seen.append(features)
            return (features + delta, *rest) if rest else features + delta

        # In the reference implementation every layer is its own call.
        with nn.intercept_methods(add), ops.lowerings('reference'):
            logits: Any = model.apply(variables, x, train=False)
        if not seen or seen[0].ndim != 4:
            raise UserError(f'{type(model).__name__} has no features at {at!r}')
        return logits, seen[0]

    logits, features = forward(variables, x, 0.0)
    chosen = jnp.argmax(logits, -1) if classes is None else jnp.asarray(classes)

    @jax.jit
    def score(delta: jax.Array, variables: Any, x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(forward(variables, x, delta)[0], chosen[:, None], -1).sum()

    gradient = jax.grad(score)(jnp.zeros_like(features), variables, x)
    weights = jnp.mean(gradient, (1, 2), keepdims=True)
    return nn.relu(jnp.sum(weights * features, -1))
