"""The options of XLA for programs without gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from xception_flax import ops
from xception_flax.ops import lowering


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(lowering.FORWARD_OPTIONS, 'cpu', {'xla_cpu_no_such_option': ''})
    assert lowering.forward_options.__wrapped__('cpu') == {}


def test_the_options_for_programs_without_gradients_keep_the_values():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 20, 20, 32)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 32, 64)), jnp.float32)

    def program(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        return y @ kernel[0, 0].T

    plain = jax.jit(program).lower(x, kernel).compile()
    options = ops.forward_options('cpu')
    quick = jax.jit(program, compiler_options=options).lower(x, kernel).compile()
    # If not, XLA has renamed the option, and prediction is slow.
    assert options or 'ynn' not in plain.as_text()
    assert 'ynn' not in quick.as_text()
    # Sums of 288 and 64 products, in another order.
    np.testing.assert_allclose(quick(x, kernel), plain(x, kernel), rtol=1e-5, atol=1e-3)
