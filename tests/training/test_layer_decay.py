import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers import small_config

from xception_flax.models import build_model
from xception_flax.training.layer_decay import layer_multipliers
from xception_flax.training.optimizers import OPTIMIZERS, make_optimizer

RNG = np.random.default_rng(0)


def test_each_block_has_the_learning_rate_of_its_depth():
    c = small_config(optimizer__layer_decay=0.5, xception__middle_repeats=2)
    order = [
        'entry_flow/conv1', 'entry_flow/conv2', 'entry_flow/block1', 'entry_flow/block2',
        'entry_flow/block3', 'middle_flow/block1', 'middle_flow/block2', 'exit_flow/block1',
        'exit_flow/sepconv3', 'exit_flow/sepconv4', 'logits',
    ]  # fmt: skip
    expected = {block: 0.5**depth for depth, block in enumerate(reversed(order))}
    assert layer_multipliers(c, build_model(c, 4)) == expected


def test_an_auxiliary_classifier_has_the_full_rate_and_is_not_counted():
    c = small_config(optimizer__layer_decay=0.5, model='inception_v3', image_size=139)
    c.inception_v3.update(auxiliary=True, fc_layers=(8,))
    stem, mixed = [f'conv{i}' for i in range(1, 6)], [f'mixed{i}' for i in range(11)]
    order = [*stem, *mixed, 'fc1', 'logits']
    expected = {block: 0.5**depth for depth, block in enumerate(reversed(order))}
    assert layer_multipliers(c, build_model(c, 4)) == {**expected, 'aux': 1.0}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_updates_are_scaled_exactly(name):
    c = small_config(
        optimizer__name=name, optimizer__weight_decay=0.1, optimizer__clip_norm=1.0
    )  # fmt: skip
    multipliers = {
        'logits': 1.0, 'fc1': 0.7, 'entry_flow/conv2': 0.7**2, 'entry_flow/conv1': 0.7**3,
    }  # fmt: skip

    def module(*shape):
        kernel, bias = RNG.normal(size=shape), RNG.normal(size=shape[-1:])
        return {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}

    params = {
        'entry_flow': {'conv1': module(3, 3, 3, 8), 'conv2': module(3, 3, 8, 8)},
        'fc1': module(8, 8), 'logits': module(8, 4),
    }  # fmt: skip
    grads = jax.tree.map(lambda x: x + 1, params)
    schedule = optax.constant_schedule(0.1)
    plain, layered = make_optimizer(c, schedule), make_optimizer(c, schedule, multipliers)
    state = layered_state = plain.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(layered.init(params))
    for _ in range(3):
        updates, state = plain.update(grads, state, params)
        scaled, layered_state = layered.update(grads, layered_state, params)
        scaled = flatten_dict(scaled, sep='/')
        for key, update in flatten_dict(updates, sep='/').items():
            (block,) = (block for block in multipliers if key.startswith(f'{block}/'))
            expected = update * np.float32(multipliers[block])
            np.testing.assert_array_equal(scaled[key], expected, err_msg=key)
