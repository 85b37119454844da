"""Every transformation of JAX works on every operation, as on plain ones, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from plain_xception import plain_logits

from xception_flax import create_model, ops
from xception_flax.ops import convolution

NHWC = ('NHWC', 'HWIO', 'NHWC')


pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture
def implementation(request, monkeypatch):
    """What each kind of device takes; an unknown one is found out when the program is compiled.

    'copies' is the reference on a mesh with a second axis, on which a batch has copies.
    """
    monkeypatch.setattr(convolution, 'PATCHES_FROM', 1)  # as for large images
    name, batch = request.param, None
    if name == 'copies':
        mesh = jax.make_mesh((1, 1), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
        batch = NamedSharding(mesh, PartitionSpec('data'))
    choice = 'reference' if name in ('reference', 'copies') else 'auto'
    with ops.lowerings(choice, name if name in ('cpu', 'tpu', 'cuda') else '', batch):
        yield


def plain_conv(x, kernel, strides=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), ((1, 1), (1, 1)) if len(kernel) == 3 else 'VALID',
        feature_group_count=groups, dimension_numbers=NHWC,
    )  # fmt: skip


def plain_pool(x):
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


def conv(x, kernel, strides=1):
    padding = ((1, 1), (1, 1)) if len(kernel) == 3 else 'VALID'
    return ops.conv(x, kernel, (strides, strides), padding, dimension_numbers=NHWC)


QUICK = (('pointwise', 'unknown'), ('max_pool', 'cpu'), ('depthwise', 'cuda'))
# Name: ours, plain, shapes of the operands after the images `[2, 5, 6, 4]`.
OPERATIONS = {
    'depthwise': (
        functools.partial(ops.depthwise_conv, strides=2),
        lambda x, k: plain_conv(x, k, 2, groups=4),
        [(3, 3, 1, 4)],
    ),
    'separable': (
        ops.separable_conv,
        lambda x, k, p: plain_conv(plain_conv(x, k, groups=4), p),
        [(3, 3, 1, 4), (1, 1, 4, 3)],
    ),
    'pointwise': (conv, plain_conv, [(1, 1, 4, 3)]),
    'convolution': (
        functools.partial(conv, strides=2),
        functools.partial(plain_conv, strides=2),
        [(3, 3, 4, 3)],
    ),
    'max_pool': (lambda x: ops.max_pool(x, 3, 2, ((1, 1), (1, 1))), plain_pool, []),
    'normalise': (
        ops.normalise,
        lambda x, mean, multiplier, bias: (x - mean) * multiplier + bias,
        [(2, 1, 1, 4), (2, 1, 1, 4), (4,)],
    ),
}


@pytest.fixture
def operation(request):
    """Ours and the plain one, as functions that bend (whose second derivatives are not zero)."""
    ours, plain, shapes = OPERATIONS[request.param]
    rng = np.random.default_rng(0)
    operands, tangents = (
        [jnp.asarray(rng.normal(size=s)) for s in [(2, 5, 6, 4), *shapes]] for _ in range(2)
    )

    def bent(op):
        return lambda *operands: jnp.sin(op(*[jnp.sin(x) for x in operands]))

    return bent(ours), bent(plain), operands, tangents


def scalar(op):
    return lambda *operands: jnp.square(op(*operands)).sum()


def every(operands):
    return tuple(range(len(operands)))


def batched(op, operands, tangents, which):
    stacked = [
        jnp.stack([a, b, a - b]) if i in which else a
        for i, (a, b) in enumerate(zip(operands, tangents, strict=True))
    ]
    axes = [0 if i in which else None for i in every(operands)]
    return jax.vmap(op, axes), stacked


def forward(op, operands, tangents):
    return jax.jvp(op, operands, tangents)


def linearised(op, operands, tangents):
    value, push = jax.linearize(op, *operands)
    return value, push(*tangents)


def reverse(op, operands, tangents):
    return jax.value_and_grad(scalar(op), every(operands))(*operands)


def forward_over_reverse(op, operands, tangents):
    return jax.jvp(jax.grad(scalar(op), every(operands)), operands, tangents)[1]


def reverse_over_forward(op, operands, tangents):
    def along(*operands):
        return jax.jvp(scalar(op), operands, tangents)[1]

    return jax.grad(along, every(operands))(*operands)


def reverse_over_reverse(op, operands, tangents):
    def along(*operands):
        gradients = jax.grad(scalar(op), every(operands))(*operands)
        return sum(jnp.vdot(g, t) for g, t in zip(gradients, tangents, strict=True))

    return jax.grad(along, every(operands))(*operands)


def forward_over_forward(op, operands, tangents):
    def along(*operands):
        return jax.jvp(op, operands, tangents)[1]

    return jax.jvp(along, operands, tangents)[1]


def jacobian(op, operands, tangents):
    return jax.jacfwd(lambda t: op(*operands[:-1], operands[-1] + t * tangents[-1]))(1.0)


def vmap_of_images(op, operands, tangents):
    mapped, stacked = batched(op, operands, tangents, {0})
    return jax.value_and_grad(scalar(mapped), every(operands))(*stacked)


def vmap_of_all(op, operands, tangents):
    mapped, stacked = batched(op, operands, tangents, set(every(operands)))
    return jax.value_and_grad(scalar(mapped), every(operands))(*stacked)


def vmap_of_the_last(op, operands, tangents):
    mapped, stacked = batched(op, operands, tangents, {len(operands) - 1})
    return jax.value_and_grad(scalar(mapped), every(operands))(*stacked)


def vmap_of_gradients(op, operands, tangents):
    gradient = jax.grad(scalar(op), every(operands))
    mapped, stacked = batched(gradient, operands, tangents, set(every(operands)))
    return mapped(*stacked)


def checkpoint(op, operands, tangents):
    return jax.value_and_grad(scalar(jax.checkpoint(op)), every(operands))(*operands)


def shard_map(op, operands, tangents):
    """The gradient of a sum over shards, weights being the same everywhere."""
    mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,))
    # Operands of two in the first axis belong to the images.
    specs = tuple(PartitionSpec('data') if len(x) == 2 else PartitionSpec() for x in operands)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    def total(*operands):
        return jax.lax.psum(scalar(op)(*operands), 'data')

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=specs)
    def inside(*operands):
        return jax.grad(scalar(op), every(operands))(*operands)

    return jax.grad(total, every(operands))(*operands), inside(*operands)


TRANSFORMATIONS = (
    forward, linearised, reverse, forward_over_reverse, reverse_over_forward, reverse_over_reverse,
    forward_over_forward, jacobian, vmap_of_images, vmap_of_all, vmap_of_the_last,
    vmap_of_gradients, checkpoint, shard_map,
)  # fmt: skip


@pytest.mark.parametrize(
    ('operation', 'implementation'),
    [
        pytest.param(name, device, marks=[] if (name, device) in QUICK else pytest.mark.slow)
        for name in OPERATIONS
        for device in ('unknown', 'cpu', 'tpu', 'cuda', 'reference', 'copies')
        if device != 'copies' or name in ('depthwise', 'separable')
    ],
    indirect=True,
)
def test_every_transformation_of_an_operation_is_that_of_the_plain_one(operation, implementation):
    check(*operation, 1e-13)  # sums of some hundred products


def check(ours, plain, operands, tangents, tolerance, transformations=TRANSFORMATIONS):
    """Compares transformations of two functions, relative to the largest values."""
    for transformation in transformations:

        def both(operands, tangents, transformation=transformation):
            return [transformation(op, tuple(operands), tuple(tangents)) for op in (ours, plain)]

        found, expected = map(jax.tree.leaves, jax.jit(both)(operands, tangents))
        largest = max(np.abs(b).max() for b in expected)
        for a, b in zip(found, expected, strict=True):
            # A bias before batch norm has a gradient of zero, a rounded sum of large ones.
            scale = max(np.abs(b).max(), 1e-3 * largest)
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * scale, err_msg=transformation.__name__
            )


@pytest.mark.slow
@pytest.mark.parametrize('implementation', ['unknown'], indirect=True)
def test_transformations_of_the_network_are_those_of_the_plain_one(implementation):
    model = create_model(
        'xception', 3, stem='small', width=0.05, middle_repeats=1, dropout=0.0, dtype='float64'
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 32, 32, 3))
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), x)['params'])
    leaves = [rng.normal(1.0 if w.ndim == 1 else 0.0, 0.3, w.shape) for w in leaves]

    def ours(x, *leaves):
        variables = {'params': tree.unflatten(leaves)}
        return model.apply(variables, x, train=True, mutable=['batch_stats'])[0]

    def plain(x, *leaves):
        return plain_logits(tree.unflatten(leaves), x, 0)

    operands = [x, *leaves]
    tangents = [rng.normal(size=operand.shape) for operand in operands]
    # Batch norm over the few values of the last maps enlarges rounding.
    some = (linearised, reverse_over_reverse, vmap_of_images, shard_map)
    check(ours, plain, operands, tangents, 1e-9, some)
