"""Regular convolution: its implementations equal the reference, and each backend gets its own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_flax import ops
from xception_flax.ops import convolution


def value_and_gradients(choice, x, kernel, strides, padding, grad=None, **options):
    @jax.jit
    def compute(x, kernel, grad):
        with ops.lowerings(choice):
            conv = functools.partial(
                ops.conv,
                strides=strides,
                padding=padding,
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                **options,
            )
            value, pull = jax.vjp(conv, x, kernel)
            return value, *pull(jnp.ones_like(value) if grad is None else grad)

    return compute(x, kernel, grad)


@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize(
    ('shape', 'kernel', 'strides', 'padding'),
    [
        ((2, 5, 6, 3), (1, 1, 3, 4), (1, 1), 'SAME'),
        ((2, 5, 6, 3), (1, 1, 3, 4), (2, 2), 'SAME'),
        ((2, 5, 6, 3), (1, 1, 3, 4), (2, 2), 'VALID'),
        ((2, 5, 6, 3), (1, 1, 3, 4), (1, 2), ((0, 0), (0, 0))),
        ((2, 5, 6, 3), (1, 1, 3, 4), (1, 1), ((1, 0), (0, 2))),  # padding
        ((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), 'VALID'),
        ((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), 'SAME'),
        ((1, 9, 8, 5), (1, 7, 5, 2), (1, 1), 'SAME'),
        ((1, 7, 7, 2), (7, 7, 2, 3), (2, 2), ((3, 3), (3, 3))),
        ((1, 8, 8, 2), (2, 3, 2, 3), (3, 1), ((0, 1), (2, 0))),
    ],
)
# bfloat16 has 8 bits, and the gradients are rounded to it.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_equals_the_reference_in_value_and_gradients(
    shape, kernel, strides, padding, dtype, tolerance, many, monkeypatch
):
    if many:  # as for large images
        monkeypatch.setattr(convolution, 'PATCHES_FROM', 1)
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=s), dtype) for s in (shape, kernel))
    grad = jax.eval_shape(
        lambda x, k: ops.conv(x, k, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
        x,
        k,
    )
    grad = jnp.asarray(rng.normal(size=grad.shape), dtype)
    wide = [a.astype(jnp.float32) for a in (x, k, grad)]
    expected = value_and_gradients('reference', *wide[:2], strides, padding, wide[2])
    found = value_and_gradients('auto', x, k, strides, padding, grad)
    for ours, array in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float32) - array).max()
        assert error <= tolerance * np.abs(array).max()


@pytest.mark.parametrize(
    ('kernel', 'options'),
    [
        ((3, 3, 4, 2), {'rhs_dilation': (2, 2)}),
        ((1, 1, 4, 2), {'lhs_dilation': (2, 2)}),
    ],
)
def test_other_convolutions_are_the_reference(kernel, options, monkeypatch):
    monkeypatch.setattr(convolution, 'PATCHES_FROM', 1)
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 6, 6, 4), kernel))
    found, expected = (
        value_and_gradients(choice, x, k, (1, 1), ((0, 0), (0, 0)), **options)
        for choice in ('auto', 'reference')
    )
    for ours, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, array)


@pytest.mark.parametrize('choice', ['auto', 'reference'])
def test_groups_are_those_of_xla(choice):
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 6, 6, 4), (3, 3, 2, 6)))
    options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': 2}
    value, pull = jax.vjp(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), 'SAME', **options), x, k
    )
    grad = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    found = value_and_gradients(choice, x, k, (2, 2), 'SAME', grad, feature_group_count=2)
    for ours, array in zip(found, (value, *pull(grad)), strict=True):
        np.testing.assert_allclose(ours, array, atol=2e-6 * np.abs(array).max())


def test_the_implementation_depends_on_the_backend_and_the_choice():
    conv = nn.Conv(4, (1, 1), conv_general_dilated=ops.conv)
    x = jnp.ones((1, 4, 4, 3))
    variables = conv.init(jax.random.key(0), x)

    def text(choice, platform):
        def apply(x):
            with ops.lowerings(choice):
                return conv.apply(variables, x)

        return jax.jit(apply).trace(x).lower(lowering_platforms=(platform,)).as_text()

    assert 'stablehlo.convolution' not in text('auto', 'cpu')
    assert 'stablehlo.convolution' in text('auto', 'tpu')
    assert 'stablehlo.convolution' in text('reference', 'cpu')
