"""Xception in several libraries, for `experiments.benchmarks.cpu`.

python -m experiments.benchmarks.networks NAME training|inference BATCH
"""

import os
import sys
from collections.abc import Callable

import numpy as np

from experiments.benchmarks import turns

SIZE, CLASSES = 299, 1000
RATE, MOMENTUM = 0.045, 0.9
Call = Callable[[], object]  # does one step, or classifies one batch, and waits for the end


def pictures(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures `[N, 299, 299, 3]` uint8 and labels `[N]`."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
        rng.integers(0, CLASSES, batch).astype(np.int32),
    )


def xception_flax(task: str, batch: int, folded: bool = True, lowering: str = 'auto') -> Call:
    """This project: the step of `xception_flax.main`, and what `predict` calls."""
    import jax

    from experiments.studies import settings
    from xception_flax import ops
    from xception_flax.inference.folding import fold_batch_norm
    from xception_flax.inference.prediction import classify
    from xception_flax.runtime import memory
    from xception_flax.training.setup import set_up

    memory.keep_freed()

    overrides = {
        'dataset.source': 'synthetic', 'dataset.num_classes': CLASSES, 'dtype': 'float32',
        'dataset.train_split': 'train', 'dataset.eval_split': 'train', 'batch_size': batch,
        'optimizer.name': 'sgd', 'optimizer.momentum': MOMENTUM, 'optimizer.weight_decay': 0.0,
        'schedule.name': 'constant', 'schedule.learning_rate': RATE,
        'ema_decay': 0.0, 'xception.dropout': 0.0, 'lowering': lowering,
    }  # fmt: skip
    run = set_up(settings.read('configs/imagenet.py', overrides))
    images, labels = pictures(batch)
    state, _ = run.init()
    if task == 'training':
        given = {'image': jax.numpy.asarray(images), 'label': jax.numpy.asarray(labels)}

        def step() -> None:
            nonlocal state
            state, metrics = run.train_step(state, given)
            jax.block_until_ready(metrics)

        return step

    def program(variables, given):
        with ops.lowerings(lowering):
            return classify(variables, given, run.model, 'tf', 'softmax')

    variables = state.variables('live')
    if folded:
        variables = fold_batch_norm(run.model, variables, SIZE)
    classifying, given = jax.jit(program), jax.numpy.asarray(images)
    return lambda: jax.block_until_ready(classifying(variables, given))


def keras(task: str, batch: int, backend: str) -> Call:
    """`keras.applications.Xception`; on TensorFlow without XLA, which is the quicker on CPU."""
    os.environ['KERAS_BACKEND'] = backend
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import keras

    model = keras.applications.Xception(weights=None, classes=CLASSES, classifier_activation=None)
    model.compile(
        keras.optimizers.SGD(RATE, momentum=MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=backend == 'jax',
    )
    images, labels = pictures(batch)
    images = images.astype(np.float32) / 127.5 - 1
    if task == 'training':
        return lambda: model.train_on_batch(images, labels)
    return lambda: model.predict_on_batch(images)


def pytorch(task: str, batch: int) -> Call:
    """The `legacy_xception` of timm, in channels-last memory."""
    import timm
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    layout = torch.channels_last
    model = timm.create_model('legacy_xception', num_classes=CLASSES).to(memory_format=layout)
    images, labels = pictures(batch)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    given, target = given.to(memory_format=layout), torch.from_numpy(labels).long()
    if task == 'inference':
        model.eval()

        def classify():
            with torch.inference_mode():
                return model(given)

        return classify
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(given), target).backward()
        optimizer.step()

    return step


CONTENDERS: dict[str, tuple[str, tuple[str, ...], Callable[[str, int], Call]]] = {
    # by name: what it is, the packages whose versions count, and what makes its call
    'ours': ('xception_flax', ('jax', 'flax'), xception_flax),
    'unfolded': (
        'xception_flax, batch norm not folded',
        ('jax', 'flax'),
        lambda task, batch: xception_flax(task, batch, folded=False),
    ),
    'reference': (
        "xception_flax, lowering='reference'",
        ('jax', 'flax'),
        lambda task, batch: xception_flax(task, batch, False, 'reference'),
    ),
    'keras_tensorflow': (
        'Keras on TensorFlow',
        ('keras', 'tensorflow'),
        lambda task, batch: keras(task, batch, 'tensorflow'),
    ),
    'keras_jax': (
        'Keras on JAX', ('keras', 'jax'), lambda task, batch: keras(task, batch, 'jax'),
    ),
    'pytorch': ('PyTorch, timm, channels last', ('torch', 'timm'), pytorch),
}  # fmt: skip


if __name__ == '__main__':
    chosen, wanted, size = sys.argv[1:]
    turns.serve(lambda: CONTENDERS[chosen][2](wanted, int(size)))
