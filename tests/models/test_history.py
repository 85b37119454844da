"""LeNet-5 and AlexNet: what they have and other networks do not."""

import jax.numpy as jnp
import numpy as np

from xception_flax.models import history


def test_lenet_has_the_sixty_connections_of_its_paper():
    assert sum(map(len, history.CONNECTED)) == 60
    # Table I, its first row: the maps that are connected to the first of the six.
    assert [i for i, seen in enumerate(history.CONNECTED) if 0 in seen] == [
        0, 4, 5, 6, 9, 10, 11, 12, 14, 15
    ]  # fmt: skip


def test_local_response_norm_by_hand():
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4) * 100
    squares = np.array([14, 30, 30, 29]) * 1e4
    expected = x.ravel() / (2 + 1e-4 * squares) ** 0.75
    np.testing.assert_allclose(history.local_response_norm(x).ravel(), expected, rtol=1e-6)
