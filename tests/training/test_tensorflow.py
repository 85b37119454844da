"""What training does "as in TensorFlow", beside TensorFlow's own operations.

The paper was trained in TensorFlow 1, whose optimizers live on in `tf.compat.v1`.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from helpers import small_config

from xception_flax.config import Durations
from xception_flax.training import losses, optimizers

tf = pytest.importorskip('tensorflow')

RNG = np.random.default_rng(0)
L2 = 1e-2
KERNEL = RNG.normal(size=(3, 4)).astype(np.float32)
GRADIENTS = RNG.normal(size=(20, 3, 4)).astype(np.float32)
# Sums of 20 updates in float32, each rounded by 6e-8 of the largest values.
CLOSE = {'rtol': 1e-5, 'atol': 1e-6}


def ours(**settings):
    """The kernel after 20 updates at a learning rate of 0.05."""
    c = small_config(optimizer__weight_decay=L2, **settings)
    optimizer = optimizers.make_optimizer(c, lambda step: 0.05)
    params = {'conv': {'kernel': jnp.asarray(KERNEL)}}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in GRADIENTS:
        updates, state = update({'conv': {'kernel': gradient}}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params['conv']['kernel']


def theirs(optimizer, penalty):
    """The same by an optimizer of TensorFlow 1, with the penalty in the loss."""
    kernel = tf.Variable(KERNEL)
    for gradient in GRADIENTS:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * gradient) + penalty(kernel)
        optimizer.apply_gradients([(tape.gradient(loss, kernel), kernel)])
    return kernel.numpy()


def slim(kernel):
    """`tf.contrib.slim.l2_regularizer(L2)`."""
    return L2 * tf.nn.l2_loss(kernel)


@pytest.mark.parametrize('epsilon', [1.0, 1e-3])
def test_rmsprop(epsilon):
    reference = tf.compat.v1.train.RMSPropOptimizer(0.05, 0.9, 0.8, epsilon)
    found = ours(
        optimizer__name='rmsprop', optimizer__decay=0.9, optimizer__momentum=0.8,
        optimizer__epsilon=epsilon,
    )  # fmt: skip
    np.testing.assert_allclose(found, theirs(reference, slim), **CLOSE)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd(nesterov):
    reference = tf.compat.v1.train.MomentumOptimizer(0.05, 0.9, use_nesterov=nesterov)
    found = ours(optimizer__momentum=0.9, optimizer__nesterov=nesterov)
    np.testing.assert_allclose(found, theirs(reference, slim), **CLOSE)


def test_l2_of_keras_is_twice_ours():
    reference = tf.compat.v1.train.MomentumOptimizer(0.05, 0.9)
    penalty = keras.regularizers.L2(L2 / 2)
    found = ours(optimizer__momentum=0.9)
    np.testing.assert_allclose(
        found, theirs(reference, lambda kernel: penalty.l2 * tf.reduce_sum(kernel**2)), **CLOSE
    )
    assert penalty(KERNEL) == pytest.approx(float(L2 / 2 * (KERNEL**2).sum()), rel=1e-6)


@pytest.mark.parametrize('staircase', [False, True])
def test_exponential_decay(staircase):
    c = small_config(
        total_steps=100, schedule__name='exponential', schedule__learning_rate=0.045,
        schedule__decay_epochs=2,
        schedule__decay_rate=0.94, schedule__staircase=staircase,
    )  # fmt: skip
    durations = Durations.resolve(c, examples=320)
    schedule = optimizers.make_schedule(c, durations)
    for step in (0, 1, durations.decay - 1, durations.decay, 99):
        expected = tf.compat.v1.train.exponential_decay(
            0.045, step, durations.decay, 0.94, staircase
        )()
        assert float(schedule(step)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_label_smoothing(loss):
    logits = RNG.normal(size=(6, 5)).astype(np.float32)
    labels = np.eye(5, dtype=np.float32)[RNG.integers(0, 5, 6)]
    if loss == 'softmax':
        expected = tf.compat.v1.losses.softmax_cross_entropy(
            labels, logits, label_smoothing=0.1, reduction='none'
        )
    else:
        expected = tf.reduce_sum(
            tf.compat.v1.losses.sigmoid_cross_entropy(
                labels, logits, label_smoothing=0.1, reduction='none'
            ),
            1,
        )
    found = losses.LOSSES[loss](logits, losses.smooth(labels, 0.1, loss))
    np.testing.assert_allclose(found, expected, **CLOSE)
