"""Program of test_devices.py: gradients on several simulated devices against plain ones on one.

The network that they are compared with, `plain_xception`, takes nothing from the package.

    python tests/training/device_gradients.py CASES.json

prints the largest relative error of a parameter's gradient, for each case. A case has an
implementation of the operations ('cpu', 'tpu', 'reference', ...), a mesh ([8] or [4, 2]; the batch
is sharded over its first axis), the size of the batch and of the batch-norm groups, and whether the
operations are told how the batch is sharded.
"""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_flax import create_model, ops

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from plain_xception import plain_logits

CLASSES, SIZE = 5, 8
OPTIONS = {'stem': 'small', 'width': 0.2, 'middle_repeats': 1, 'dropout': 0.0, 'dtype': 'float64'}


def loss_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def start(images: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Variables, images and labels."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (images, SIZE, SIZE, 3))
    model = create_model('xception', CLASSES, **OPTIONS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x[:1])

    def draw(leaf):
        fan_in = max(1, leaf.size // leaf.shape[-1])
        return rng.normal(1.0 if fan_in == 1 else 0.0, 1 / fan_in**0.5, leaf.shape)

    return jax.tree.map(draw, shapes), x, rng.integers(0, CLASSES, images)


@functools.cache
def plain_gradients(images: int, group_size: int) -> dict:
    variables, x, labels = start(images)
    gradient = jax.grad(lambda p: loss_of(plain_logits(p, x, group_size), labels))
    return jax.device_get(jax.jit(gradient)(variables['params']))


def sharded_gradients(
    implementation: str, mesh: list[int], images: int, group_size: int, known: bool
) -> dict:
    """Gradients of the package's network, its batch sharded over the mesh's first axis."""
    variables, x, labels = start(images)
    devices = np.array(jax.devices()[: int(np.prod(mesh))]).reshape(mesh)
    names = ('data', 'model')[: len(mesh)]
    grid = Mesh(devices, names, axis_types=(AxisType.Auto,) * len(mesh))
    everywhere, sharded = (NamedSharding(grid, PartitionSpec(*axes)) for axes in ((), ('data',)))
    model = create_model('xception', CLASSES, bn_group_size=group_size, **OPTIONS)
    whole = implementation in ('reference', 'pallas')
    choice = (implementation, '') if whole else ('auto', implementation)

    @functools.partial(
        jax.jit, in_shardings=(everywhere, sharded, sharded), out_shardings=everywhere
    )
    @jax.grad
    def gradient(params, x, labels):
        with ops.lowerings(*choice, sharded if known else None):
            logits, _ = model.apply(
                {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
            )
        return loss_of(logits, labels)

    return jax.device_get(gradient(variables['params'], x, labels))


def difference(found: dict, expected: dict) -> float:
    """The largest error of a parameter's gradient, relative to its norm."""
    # Behind the last block a bias vanishes in the next batch norm: its gradient is zero.
    zero = 1e-6 * max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected))
    relative = jax.tree.map(
        lambda a, b: float(np.linalg.norm(a - b) / max(np.linalg.norm(b), zero)), found, expected
    )
    return max(jax.tree.leaves(relative))


def main() -> None:
    jax.config.update('jax_enable_x64', True)
    cases = json.loads(pathlib.Path(sys.argv[1]).read_text())
    errors = [
        difference(sharded_gradients(**case), plain_gradients(case['images'], case['group_size']))
        for case in cases
    ]
    print(json.dumps(errors))


if __name__ == '__main__':
    main()
