import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import small_config

from xception_flax.base import mesh as meshes
from xception_flax.data.scaling import scale
from xception_flax.models import layers
from xception_flax.training import losses
from xception_flax.training.metrics import Task
from xception_flax.training.optimizers import make_optimizer
from xception_flax.training.state import create_state
from xception_flax.training.step import make_eval_step, make_train_step

BATCH = 8
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 4, BATCH).astype(np.int32)
RATE = 0.1


class Tiny(nn.Module):
    """A convolution, batch norm, dropout and a classifier: every kind of layer for a step."""

    group_size: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    num_classes: int = 4

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(layers.BatchNorm, group_size=self.group_size, dtype=self.dtype)
        x = nn.relu(layers.ConvBN(8, strides=2, norm=norm, dtype=self.dtype)(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x.astype(jnp.float32).reshape(len(x), -1))


def build_model(c):
    options = c.xception
    return Tiny(options.bn_group_size, options.dropout, jnp.dtype(c.dtype))


def config(**settings):
    return small_config(image_size=8, batch_size=BATCH, **settings)


@functools.cache
def compiled(**settings):
    """The step, and the state before it."""
    c = config(**settings)
    mesh = meshes.make_mesh()  # of as many devices as the tests run on
    step = jax.jit(
        make_train_step(build_model(c), optax.sgd(RATE), optax.constant_schedule(RATE), c),
        in_shardings=(meshes.replicated(mesh), meshes.sharded(mesh)),
        out_shardings=meshes.replicated(mesh),
    )
    return step, initial(bool(c.ema_decay))


def run(steps=1, order=None, **settings):
    """The state and the metrics after some steps of SGD on the same batch."""
    step, state = compiled(**settings)
    order = np.arange(BATCH) if order is None else np.array(order)
    for _ in range(steps):
        state, metrics = step(state, {'image': IMAGES[order], 'label': LABELS[order]})
    return jax.device_get((state, metrics))


def measured(c, variables, batch, subset=()):
    """The sums over a batch by metric, and its counts."""
    task = Task(c.loss, np.ones(4), subset)
    found = jax.device_get(jax.jit(make_eval_step(build_model(c), c, task))(variables, batch))
    return found['metrics'], found['counts']


@functools.cache
def initial(averaged=False):
    init = functools.partial(create_state, Tiny(), optax.sgd(RATE), 8, averaged)
    return jax.jit(init)(jax.random.key(0))


@jax.jit
def logits_of(variables, images):
    return Tiny().apply(variables, images, train=False)


@jax.jit
def training_logits_of(variables, images):
    return Tiny().apply(variables, images, train=True, mutable=['batch_stats'])[0]


def assert_close(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # The absolute part is for biases whose gradient is zero except for rounding.
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=max(2e-6, tolerance * np.abs(b).max())
        )


def test_a_step_is_gradient_descent_on_the_loss():
    before = initial()

    def loss(params):
        variables = {'params': params, 'batch_stats': before.batch_stats}
        logits = training_logits_of(variables, scale(IMAGES, 'tf'))
        return losses.softmax(logits, jax.nn.one_hot(LABELS, 4)).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(before.params)
    state, metrics = run()
    assert state.step == 1
    assert metrics['loss'] == pytest.approx(float(value), rel=1e-5)
    assert metrics['gradient_norm'] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    assert metrics['learning_rate'] == pytest.approx(RATE)
    expected = jax.tree.map(lambda w, g: w - RATE * g, before.params, grads)
    assert_close(state.params, expected)


@pytest.mark.parametrize('k', [2, 4])
def test_accumulation_is_one_batch_normalised_in_groups(k):
    # Micro-batch i is images i, i + k, ...; side by side they are the groups of one batch.
    order = tuple(int(i) for i in np.arange(BATCH).reshape(-1, k).T.ravel())
    accumulated, metrics = run(steps=2, accumulation=k)
    grouped, expected = run(steps=2, order=order, xception__bn_group_size=BATCH // k)
    assert_close(accumulated.params, grouped.params)
    assert_close(accumulated.batch_stats, grouped.batch_stats)
    assert metrics['loss'] == pytest.approx(float(expected['loss']), rel=1e-5)
    whole, _ = run(steps=2)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.params, accumulated.params)
    assert max(jax.tree.leaves(moved)) > 1e-4  # and not the same as one group


@pytest.mark.parametrize('most', [0.05, 0.15, 0.5])  # reached at once, at step 2, not yet
def test_averages_of_weights_and_statistics_are_tensorflows(most):
    tf = pytest.importorskip('tensorflow')
    states = [initial(averaged=True)] + [run(n, ema_decay=most)[0] for n in (1, 2)]
    step, variables = tf.Variable(0.0), jax.tree.map(tf.Variable, states[0].params)
    average = tf.train.ExponentialMovingAverage(most, num_updates=step)
    average.apply(jax.tree.leaves(variables))
    for count, state in enumerate(states[1:]):
        step.assign(count)
        jax.tree.map(lambda variable, value: variable.assign(value), variables, state.params)
        average.apply(jax.tree.leaves(variables))
    expected = jax.tree.map(lambda variable: average.average(variable).numpy(), variables)
    assert_close(states[2].ema['params'], expected)
    stats = jax.tree.leaves(
        jax.tree.map(np.array_equal, states[2].ema['batch_stats'], states[2].batch_stats)
    )
    assert not all(stats)
    assert run(1)[0].ema is None


@functools.cache
def single_step(**settings):
    c = config(**settings)
    step = make_train_step(build_model(c), optax.sgd(RATE), optax.constant_schedule(RATE), c)
    return jax.jit(step)


def test_dropout_depends_on_the_step_and_on_the_seed_alone():
    step, state = single_step(xception__dropout=0.5), initial()

    def loss(number, seed):
        rng = jax.random.key_data(jax.random.key(seed))
        before = state.replace(step=jnp.int32(number), rng=rng)
        return float(step(before, {'image': IMAGES, 'label': LABELS})[1]['loss'])

    assert loss(0, 0) == loss(0, 0)
    losses = {loss(0, 0), loss(1, 0), loss(0, 1), float(run(1)[1]['loss'])}
    assert len(losses) == 4


@pytest.mark.parametrize('part', ['params', 'batch_stats'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_counted_and_can_be_skipped(part, value):
    batch = {'image': IMAGES, 'label': LABELS}
    for settings in ({}, {'nonfinite': 'skip', 'ema_decay': 0.5}):
        step, state = single_step(**settings), initial(averaged='ema_decay' in settings)
        assert step(state, batch)[1]['skipped'] == 0
        kernels = jax.tree.map(lambda x: x.at[0].set(value), state.params)
        broken = state.replace(params=kernels)
        after, metrics = step(broken, batch)
        assert metrics['skipped'] == 1
        assert after.step == 1
        if 'nonfinite' in settings:
            tree = (getattr(after, part), after.ema)
            jax.tree.map(np.testing.assert_array_equal, tree, (getattr(broken, part), broken.ema))


@pytest.mark.parametrize('name', ['adamw', 'lamb', 'rmsprop', 'sgd'])
def test_a_skipped_step_leaves_no_trace_but_in_the_schedule(name):
    c = config(nonfinite='skip', optimizer__name=name, schedule__learning_rate=0.01)
    schedule = optax.piecewise_constant_schedule(0.01, {1: 2.0})  # doubles behind the first step
    optimizer = make_optimizer(c, schedule)
    step = jax.jit(make_train_step(build_model(c), optimizer, schedule, c))
    before = initial().replace(opt_state=optimizer.init(initial().params))
    batch = {'image': IMAGES, 'label': LABELS}
    broken = before.replace(params=jax.tree.map(lambda x: x * np.nan, before.params))
    skipped = step(broken, batch)[0].replace(params=before.params)
    after = step(skipped.replace(step=before.step), batch)[0]  # step: the seed of dropout
    # As without the first one, at twice the rate.
    once = step(before, batch)[0]
    moved, expected = (
        jax.tree.map(jnp.subtract, state.params, before.params) for state in (after, once)
    )
    for a, b in zip(*map(jax.tree.leaves, (moved, expected)), strict=True):
        np.testing.assert_allclose(a, 2 * b, atol=1e-6)  # differences of numbers near 1


def test_multi_label_images_train_and_evaluate():
    c = config(loss='sigmoid')
    rows = np.eye(4, dtype=np.int32)[LABELS]
    rows[:, 3] = 1
    step, state = single_step(loss='sigmoid'), initial()
    one = step(state, {'image': IMAGES, 'label': np.eye(4, dtype=np.int32)[LABELS]})[1]
    assert one['loss'] == pytest.approx(
        float(step(state, {'image': IMAGES, 'label': LABELS})[1]['loss']), rel=1e-6
    )
    variables = state.variables('live')
    logits = np.asarray(logits_of(variables, scale(IMAGES, 'tf')))
    sums, _ = measured(
        c, variables, {'image': IMAGES, 'label': rows, 'mask': np.ones(BATCH, np.float32)}
    )
    best = logits.argmax(1)
    assert sums['top1']['sum'] == sum(rows[i, best[i]] for i in range(BATCH))
    loss = np.logaddexp(0, logits) - rows * logits
    assert float(sums['loss']['sum']) == pytest.approx(loss.sum(), rel=1e-5)


def test_a_multi_label_image_without_a_label_does_not_count():
    c = config(loss='sigmoid')
    rows = np.eye(4, dtype=np.int32)[LABELS]
    rows[:3] = 0
    mask = np.array([1, 0, 1, 1, 1, 1, -1, 1], np.float32)
    variables = initial().variables('live')
    sums, counts = measured(c, variables, {'image': IMAGES, 'label': rows, 'mask': mask})
    assert counts == {'examples': 4, 'unlabelled': 2, 'unreadable': 1}
    mask[[0, 2]] = 0
    labelled = {'image': IMAGES, 'label': np.eye(4, dtype=np.int32)[LABELS], 'mask': mask}
    expected, _ = measured(c, variables, labelled)
    assert set(sums) == {'top1', 'top5', 'loss', 'map100_pictures', 'map100_classes'}
    jax.tree.map(np.testing.assert_array_equal, sums, expected)


def test_accuracy_among_some_classes_is_measured_too():
    c = config()
    variables, subset = initial().variables('live'), (1, 3)
    images = RNG.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    labels = RNG.choice(subset, 64)
    batch = {'image': images, 'label': labels, 'mask': np.ones(64, np.float32)}
    found, _ = measured(c, variables, batch, subset)
    sums = {name: totals['sum'] for name, totals in found.items()}
    logits = np.asarray(logits_of(variables, scale(images, 'tf')))
    assert sums['top1'] == (logits.argmax(1) == labels).sum()
    right = (np.array(subset)[logits[:, subset].argmax(1)] == labels).sum()
    assert sums['top1_subset'] == right > sums['top1'] > 0
    assert sums['top5_subset'] == 64  # of two


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_probabilities_are_averaged_over_crops(loss):
    c = config(loss=loss)
    variables = initial().variables('live')
    images = RNG.integers(0, 256, (BATCH, 3, 8, 8, 3), dtype=np.uint8)
    batch = {'image': images, 'label': LABELS, 'mask': np.ones(BATCH, np.float32)}
    sums, _ = measured(c, variables, batch)
    flat = scale(images.reshape(-1, 8, 8, 3), 'tf')
    logits = logits_of(variables, flat).reshape(BATCH, 3, 4)
    mean = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[loss](logits).mean(1)
    targets = jax.nn.one_hot(LABELS, 4)
    no = (1 - targets) * jnp.log(1 - mean) if loss == 'sigmoid' else 0
    expected = -(targets * jnp.log(mean) + no).sum()
    assert float(sums['loss']['sum']) == pytest.approx(float(expected), rel=1e-5)
    assert sums['top1']['sum'] == (mean.argmax(1) == LABELS).sum()


def test_label_smoothing_raises_the_loss_of_a_sure_network():
    assert run(30)[1]['loss'] < 0.1
    assert run(30, label_smoothing=0.2)[1]['loss'] > 0.3


def test_weights_of_classes_in_the_loss_are_those_of_keras():
    import keras

    weights, c = np.float32([0.25, 1, 2, 8]), config()
    before = initial()
    variables = {'params': before.params, 'batch_stats': before.batch_stats}
    logits = np.asarray(training_logits_of(variables, scale(IMAGES, 'tf')))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(loss(LABELS, logits, sample_weight=weights[LABELS]))
    sgd, rate = optax.sgd(RATE), optax.constant_schedule(RATE)
    step = jax.jit(make_train_step(build_model(c), sgd, rate, c, loss_weights=weights))
    after, metrics = step(before, {'image': IMAGES, 'label': LABELS})
    assert float(metrics['loss']) == pytest.approx(expected, rel=1e-5)
    # The gradient of the classifier's bias: the weighted errors of the probabilities.
    errors = np.asarray(jax.nn.softmax(logits)) - np.eye(4)[LABELS]
    gradient = (weights[LABELS][:, None] * errors).mean(0)
    moved = before.params['Dense_0']['bias'] - after.params['Dense_0']['bias']
    np.testing.assert_allclose(moved / RATE, gradient, rtol=1e-4, atol=1e-6)


def test_sigmoid_loss_trains_too():
    assert run(30, loss='sigmoid')[1]['loss'] < 0.2 * run(1, loss='sigmoid')[1]['loss']


def test_mixup_mixes_neighbours_and_their_labels():
    before = initial()
    rng = jax.random.fold_in(jax.random.wrap_key_data(before.rng), 0)
    mix_rng, _ = jax.random.split(rng)
    part = jax.random.beta(mix_rng, 1.0, 1.0)
    part = float(max(part, 1 - part))
    mixed = part * scale(IMAGES, 'tf') + (1 - part) * scale(IMAGES, 'tf')[np.arange(BATCH) - 1]
    targets = jax.nn.one_hot(LABELS, 4)
    targets = part * targets + (1 - part) * targets[np.arange(BATCH) - 1]
    variables = {'params': before.params, 'batch_stats': before.batch_stats}
    logits = training_logits_of(variables, mixed)
    expected = float(losses.softmax(logits, targets).mean())
    assert run(1, mixup=1.0)[1]['loss'] == pytest.approx(expected, rel=1e-4)


def test_evaluation_sums_over_images_of_mask_one():
    c = config()
    variables = initial().variables('live')
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 0], np.float32)
    sums, counts = measured(c, variables, {'image': IMAGES, 'label': LABELS, 'mask': mask})
    logits = logits_of(variables, scale(IMAGES, 'tf'))
    chosen = mask > 0
    assert counts['examples'] == 5
    assert {int(totals['count']) for totals in sums.values()} == {5}
    assert sums['top1']['sum'] == (np.argmax(logits, 1) == LABELS)[chosen].sum()
    assert sums['top5']['sum'] == 5
    expected = losses.softmax(logits, jax.nn.one_hot(LABELS, 4))[chosen].sum()
    assert float(sums['loss']['sum']) == pytest.approx(float(expected), rel=1e-5)


def test_bfloat16_trains_with_float32_state():
    state, metrics = run(30, dtype='bfloat16')
    assert {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))} == {
        np.dtype('float32')
    }
    assert metrics['loss'] < 0.3


def test_an_auxiliary_classifier_adds_to_the_gradient_but_not_to_the_loss():
    class Two(nn.Module):
        num_classes: int = 4

        @nn.compact
        def __call__(self, x, train):
            x = x.reshape(len(x), -1)
            if train or self.is_initializing():
                more = nn.Dense(4, name='aux')(x)
                if not self.is_initializing():
                    self.sow('auxiliary', 'aux_logits', more)
            return nn.Dense(4, name='logits')(x)

    optimizer, batch = optax.sgd(RATE), {'image': IMAGES, 'label': LABELS}
    create = functools.partial(create_state, Two(), optimizer, 8, False)
    before = jax.jit(create)(jax.random.key(0))
    losses_of = {}
    for weight in (0.0, 0.4):
        c = config(auxiliary_weight=weight)
        step = make_train_step(Two(), optimizer, optax.constant_schedule(RATE), c)
        after, metrics = jax.jit(step)(before, batch)
        moved = jax.tree.map(lambda a, b: a - b, after.params, before.params)
        losses_of[weight] = (metrics['loss'], moved)
    assert losses_of[0.0][0] == losses_of[0.4][0]
    without, with_it = losses_of[0.0][1], losses_of[0.4][1]
    assert_close(with_it['logits'], without['logits'])
    assert not np.any(without['aux']['kernel'])

    def aux_loss(params):
        logits = Two().apply({'params': params}, scale(IMAGES, 'tf'), True, mutable='auxiliary')
        (more,) = jax.tree.leaves(logits[1])
        return losses.softmax(more, jax.nn.one_hot(LABELS, 4)).mean()

    grads = jax.jit(jax.grad(aux_loss))(before.params)
    assert_close(with_it['aux'], jax.tree.map(lambda g: -0.4 * RATE * g, grads['aux']))
