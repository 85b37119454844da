"""Xception in several libraries, for the other benchmarks in this folder.

  python -m experiments.benchmarks.networks NAME training|inference BATCH [PATH=VALUE...]

PATH=VALUE are settings of this project's networks.
"""

import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmarks import turns

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SIZE, CLASSES = 299, 1000
LEARNING_RATE, MOMENTUM = 0.045, 0.9
FILES = {'xception': 'configs/imagenet.py', 'inception_v3': 'configs/imagenet_inception_v3.py'}
Call = Callable[[], object]  # takes one step or classifies one batch, and waits for the result


def random_batch(batch: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Random images `[N, size, size, 3]` uint8 and labels `[N]`."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        rng.integers(0, CLASSES, batch).astype(np.int32),
    )


def config(model: str, batch: int, **overrides: Any) -> 'ConfigDict':
    """The recipe of all contenders: SGD with momentum; no weight decay, averaging or dropout."""
    from experiments.studies import settings

    plain = {
        'dataset.source': 'synthetic', 'dataset.num_classes': CLASSES, 'batch_size': batch,
        'dataset.train_split': 'train', 'dataset.eval_split': 'train', 'dtype': 'float32',
        'optimizer.name': 'sgd', 'optimizer.momentum': MOMENTUM, 'optimizer.weight_decay': 0.0,
        'schedule.name': 'constant', 'schedule.learning_rate': LEARNING_RATE,
        'ema_decay': 0.0, f'{model}.dropout': 0.0,
    }  # fmt: skip
    return settings.read(FILES[model], plain | overrides)


def xception_flax(
    task: str, batch: int, folded: bool = True, devices: int = 1, **overrides: Any
) -> Call:
    """This project: the training step of `xception_flax.main`, or the inference of `predict`."""
    import jax

    from xception_flax import ops
    from xception_flax.base import memory
    from xception_flax.base import mesh as meshes
    from xception_flax.inference.folding import fold_batch_norm
    from xception_flax.inference.prediction import classify
    from xception_flax.training.setup import set_up

    memory.keep_freed()
    if devices > 1:
        jax.config.update('jax_num_cpu_devices', devices)
    run = set_up(config('xception', batch, **overrides))
    size, lowering = run.config.image_size, run.config.lowering
    images, labels = jax.device_put(random_batch(batch, size), meshes.sharded(run.mesh))
    state, _ = run.init()
    if task == 'training':
        given = {'image': images, 'label': labels}

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
        variables = fold_batch_norm(run.model, variables, size)
    classifying = jax.jit(
        program, compiler_options=ops.forward_options(run.mesh.devices.flat[0].platform)
    )
    return lambda: jax.block_until_ready(classifying(variables, images))


def keras(task: str, batch: int, backend: str) -> Call:
    """`keras.applications.Xception`; on TensorFlow without XLA, which is faster on CPU."""
    os.environ['KERAS_BACKEND'] = backend
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import keras

    model = keras.applications.Xception(weights=None, classes=CLASSES, classifier_activation=None)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=backend == 'jax',
    )
    images, labels = random_batch(batch)
    images = images.astype(np.float32) / 127.5 - 1
    if task == 'training':
        return lambda: model.train_on_batch(images, labels)
    return lambda: model.predict_on_batch(images)


def pytorch(task: str, batch: int) -> Call:
    """The `legacy_xception` of timm, channels last; on a GPU compiled, with AMP in bfloat16."""
    import timm
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.benchmark = True  # tries several convolution algorithms, as XLA does
    torch.set_num_threads(os.cpu_count() or 1)
    model = timm.create_model('legacy_xception', num_classes=CLASSES)
    model = model.to(device, memory_format=torch.channels_last)
    network = torch.compile(model) if device == 'cuda' else model
    images, labels = random_batch(batch)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    given = given.to(device, memory_format=torch.channels_last)
    target = torch.from_numpy(labels).long().to(device)
    model.train(task == 'training')
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)

    def forward() -> torch.Tensor:
        with torch.autocast('cuda', torch.bfloat16, enabled=device == 'cuda'):
            return network(given)

    def classify() -> None:
        with torch.inference_mode():
            forward()
        wait()

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward().float(), target).backward()
        optimizer.step()
        wait()

    def wait() -> None:
        if device == 'cuda':
            torch.cuda.synchronize()

    return step if task == 'training' else classify


def facts(packages: tuple[str, ...]) -> dict[str, Any]:
    """The devices that this process computes on, and the peak memory of one in bytes.

    Args:
      packages: the packages of the contender.
    """
    if 'torch' in packages:
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
            return {'device': torch.cuda.get_device_name(), 'devices': 1, 'memory': memory}
    device, devices, taken = 'cpu', 1, None
    if 'jax' in packages:
        import jax

        device, devices = jax.devices()[0].device_kind, jax.device_count()
        taken = jax.devices()[0].memory_stats()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = taken['peak_bytes_in_use'] if taken else resident
    return {'device': device, 'devices': devices, 'memory': memory}


CONTENDERS: dict[str, tuple[str, tuple[str, ...], Callable[..., Call]]] = {
    # by name: label, packages that it needs, function that makes its call
    'ours': ('xception_flax', ('jax', 'flax'), xception_flax),
    'unfolded': (
        'xception_flax, batch norm not folded',
        ('jax', 'flax'),
        lambda task, batch: xception_flax(task, batch, folded=False),
    ),
    'reference': (
        "xception_flax, lowering='reference'",
        ('jax', 'flax'),
        lambda task, batch: xception_flax(task, batch, False, lowering='reference'),
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
    chosen, task, batch, *texts = turns.arguments(__doc__)
    _, packages, make = CONTENDERS[chosen]
    given: dict[str, Any] = {}
    if texts:
        from experiments.studies import settings  # which imports jax

        given = settings.assignments(texts)
    turns.serve(lambda: make(task, int(batch), **given), lambda: facts(packages))
