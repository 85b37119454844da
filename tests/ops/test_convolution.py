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
        ((2, 5, 6, 3), (1, 1, 3, 4), (1, 1), ((1, 0), (0, 2))),  # a border of zeros
        ((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), 'VALID'),
        ((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), 'SAME'),
        ((1, 9, 8, 5), (1, 7, 5, 2), (1, 1), 'SAME'),
        ((1, 7, 7, 2), (7, 7, 2, 3), (2, 2), ((3, 3), (3, 3))),
        ((1, 8, 8, 2), (2, 3, 2, 3), (3, 1), ((0, 1), (2, 0))),
    ],
)
# bfloat16 keeps 8 bits, and the reference's gradients are rounded to it, as ours.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_equals_the_reference_in_value_and_gradients(
    shape, kernel, strides, padding, dtype, tolerance, many, monkeypatch
):
    if many:  # as if they were large pictures
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
        ((1, 1, 1, 4), {'feature_group_count': 4}),
    ],
)
def test_what_has_no_lowering_is_the_reference(kernel, options, monkeypatch):
    monkeypatch.setattr(convolution, 'PATCHES_FROM', 1)
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 6, 6, 4), kernel))
    found, expected = (
        value_and_gradients(choice, x, k, (1, 1), ((0, 0), (0, 0)), **options)
        for choice in ('auto', 'reference')
    )
    for ours, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, array)


def test_the_lowering_follows_the_platform_and_the_choice():
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
