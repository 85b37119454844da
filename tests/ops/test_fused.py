"""The kernels of fused separable convolutions, in the interpreter, against XLA's own operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xception_flax import create_model, ops
from xception_flax.base import mesh as meshes
from xception_flax.ops import fused, kernels
from xception_flax.training.setup import set_up


def operands(height, width, n, channels, features, dtype):
    """Operands of `kernels.forward`, and gradients of its two results."""
    rng = np.random.default_rng(height)
    wide = jnp.promote_types(dtype, jnp.float32)
    x, multiplier, offset, depthwise, pointwise, dy, dsums = (
        jnp.asarray(rng.normal(size=shape), kind)
        for shape, kind in (
            ((height, width, n, channels), dtype),
            ((channels,), wide),
            ((channels,), wide),
            ((3, 3, channels), wide),
            ((channels, features), dtype),
            ((height, width, n, features), dtype),
            ((2, features), wide),
        )
    )
    return (x, multiplier, offset, depthwise, pointwise), (dy, dsums)


def plain(x, multiplier, offset, depthwise, pointwise):
    """`kernels.forward` in XLA's own operations."""
    x = jax.nn.relu(x.astype(multiplier.dtype) * multiplier + offset)
    for kernel, groups in ((depthwise[:, :, None], x.shape[3]), (pointwise[None, None], 1)):
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (1, 1), 'SAME', feature_group_count=groups,
            dimension_numbers=('HWNC', 'HWIO', 'HWNC'),
        )  # fmt: skip
    return x, jnp.stack([x.sum((0, 1, 2)), jnp.square(x).sum((0, 1, 2))])


@pytest.mark.parametrize(
    ('height', 'width', 'n', 'channels', 'features', 'images', 'rows'),
    [
        (5, 4, 16, 24, 24, 8, 5),  # one band
        (7, 4, 32, 24, 40, 16, 3),  # three bands, the last of one row; three groups of images
        (4, 3, 24, 136, 8, 8, 2),  # two tiles of channels, of 128 and 8
        (1, 1, 8, 8, 144, 8, 1),
    ],
)
@pytest.mark.usefixtures('float64')
def test_kernels_equal_plain_operations(height, width, n, channels, features, images, rows, capfd):
    arrays, gradients = operands(height, width, n, channels, features, jnp.float64)
    step = kernels.Step(images, rows, memory=None)
    (y, sums), pull = jax.vjp(plain, *arrays)
    x, *others = arrays
    found = *kernels.forward(*arrays, step), *kernels.backward(x, y, *gradients, *others, step)
    for ours, expected in zip(found, (y, sums, *pull(gradients)), strict=True):
        error = np.abs(ours - expected).max()  # NaN if it was read before it was written
        assert error <= 1e-13 * np.abs(expected).max()
    assert 'RACE' not in capfd.readouterr().out  # the interpreter looks for them


# Values are rounded to bfloat16 (8 bits) three times; a large one is the sum of many of them.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_kernels_compute_in_the_type_of_the_features(dtype, tolerance):
    arrays, gradients = operands(6, 3, 16, 136, 24, dtype)
    step = kernels.Step(16, 3, memory=None)
    y, sums = kernels.forward(*arrays, step)
    (whole, _), pull = jax.vjp(plain, *(a.astype(jnp.float32) for a in arrays))
    assert y.dtype == dtype
    assert sums.dtype == jnp.float32
    x, *others = arrays
    found = y, *kernels.backward(x, y, *gradients, *others, step)
    assert found[1].dtype == dtype
    gradients = pull(tuple(g.astype(jnp.float32) for g in gradients))
    for ours, expected in zip(found, (whole, *gradients), strict=True):
        error = np.abs(ours.astype(jnp.float32) - expected).max()
        assert error <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ('shape', 'features', 'kind', 'dtype', 'images', 'rows'),
    [
        ((128, 19, 19, 728), 728, 'TPU v5 lite', jnp.bfloat16, 16, 19),
        ((128, 19, 19, 728), 728, 'TPU v5', jnp.bfloat16, 8, 10),
        ((128, 19, 19, 728), 728, 'TPU v4', jnp.bfloat16, None, None),
        ((128, 19, 19, 728), 728, 'TPU v6 lite', jnp.float32, 8, 19),
        ((8, 19, 19, 728), 728, 'TPU v5 lite', jnp.bfloat16, 8, 19),
        ((12, 19, 19, 728), 728, 'TPU v5 lite', jnp.bfloat16, None, None),
    ],
)
def test_a_grid_step_takes_what_vector_memory_has_room_for(
    shape, features, kind, dtype, images, rows
):
    size, memory = jnp.dtype(dtype).itemsize, fused.MEMORY[kind]
    step = kernels.best_step(shape, features, fused.IMAGES, size, memory)
    assert step == (images and kernels.Step(images, rows, memory))


def sharding(devices=1):
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec('data'))


@pytest.mark.parametrize(
    ('choice', 'platform', 'n', 'channels', 'launched'),
    [
        ('auto', 'tpu', 16, fused.LEAST, True),
        ('auto', 'tpu', 16, fused.LEAST - 8, False),
        ('auto', 'tpu', 12, fused.LEAST, False),
        ('auto', 'cpu', 16, fused.LEAST, False),
        ('auto', '', 16, fused.LEAST, False),
        ('reference', 'tpu', 16, fused.LEAST, False),
        ('pallas', 'cpu', 16, 8, True),
    ],
)
def test_kernels_run_where_they_can_and_should(choice, platform, n, channels, launched):
    with ops.lowerings(choice, platform, sharding()):
        assert bool(ops.launch((n, 4, 4, channels), 8, jnp.float32)) == launched


@pytest.mark.parametrize(
    ('options', 'train'),
    [
        ({'variant': 'article'}, True),
        ({'variant': 'article'}, False),
        ({'bn_scale': False, 'residual': False}, True),
        ({'bn_group_size': 4}, True),
    ],
    ids=str,
)
@pytest.mark.usefixtures('float64')
def test_networks_with_kernels_are_those_without(options, train):
    model = create_model(
        'xception', 3, stem='small', width=0.05, middle_repeats=1, dropout=0.0, dtype='float64',
        **options,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 8, 3))
    variables = jax.tree.map(
        lambda a: np.abs(rng.normal(size=a.shape)) if a.ndim == 1 else rng.normal(size=a.shape),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    for block in variables['params']['entry_flow'].values():  # scales below zero turn max into min
        for layer in block.values():
            if 'scale' in layer.get('bn', {}):
                layer['bn']['scale'] *= rng.choice([-1, 1], layer['bn']['scale'].shape)

    @functools.partial(jax.jit, static_argnums=0)
    def apply(choice, variables):
        with ops.lowerings(choice, '', sharding()):
            return model.apply(variables, x, train=train, mutable=['batch_stats'])

    kernels_run = 'pallas_call' in str(jax.make_jaxpr(apply, static_argnums=0)('pallas', variables))
    assert kernels_run == ('bn_group_size' not in options)
    found, expected = (apply(choice, variables) for choice in ('pallas', 'reference'))
    for ours, array in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, array, rtol=0, atol=1e-10 * np.abs(array).max())


@pytest.mark.slow
@pytest.mark.usefixtures('float64')
def test_ten_steps_of_training_are_those_of_plain_operations():
    def train(lowering):
        config = small_config(
            lowering=lowering, dtype='float64', image_size=8, xception__middle_repeats=1
        )
        run = set_up(config, meshes.make_mesh())
        state, _ = run.init()
        rng = np.random.default_rng(0)
        for _ in range(10):
            images = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
            batch = {'image': images, 'label': rng.integers(0, 10, 16)}
            state, metrics = run.train_step(state, jax.device_put(batch, sharding()))
        return jax.device_get((state.params, state.batch_stats, metrics['loss']))

    found, expected = map(train, ('pallas', 'reference'))
    for ours, array in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, array, rtol=0, atol=1e-7 * max(np.abs(array).max(), 1e-3))
