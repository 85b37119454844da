"""Checks of settings, before any work is done."""

import contextlib
from collections.abc import Collection

import numpy as np
from ml_collections import ConfigDict

from xception_flax import models, ops
from xception_flax.base.errors import UserError, nearest
from xception_flax.config.durations import Durations
from xception_flax.data import protocols, scaling
from xception_flax.data.images import CROPS, EVALUATION_CROPS
from xception_flax.data.sources import SOURCES, Source
from xception_flax.runtime import trackers
from xception_flax.training import metrics
from xception_flax.training.losses import LOSSES
from xception_flax.training.optimizers import OPTIMIZERS, SCHEDULES

DTYPES = ('float32', 'bfloat16', 'float64')

CHOICES: dict[str, Collection] = {
    'model': models.MODELS,
    'dtype': DTYPES,
    'lowering': ops.CHOICES,
    'dataset.source': SOURCES,
    'augment.crop': CROPS,
    'crops': EVALUATION_CROPS,
    'protocol': protocols.PROTOCOLS,
    'preprocessing': scaling.MODES,
    'loss': LOSSES,
    'nonfinite': ('stop', 'skip'),
    'tracker': trackers.TRACKERS,
    'optimizer.name': OPTIMIZERS,
    'schedule.name': SCHEDULES,
}

# Lowest and highest value, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    'seed': (0, 2**32 - 1),
    'batch_size': (1, 2**24),
    'accumulation': (1, 2**16),
    'image_size': (1, 2**14),
    'keep_last': (1, 10**6),
    'keep_best': (0, 10**6),
    'patience': (0, 10**6),
    'profile_steps': (0, 1000),
    'crop_fraction': (0.01, 1),
    'dataset.confidence': (0, 1),
    'dataset.eval_fraction': (0, 0.9),
    'loader_threads': (1, 1024),
    'loader_processes': (0, 512),
    'max_unreadable': (0, 1),
    'max_megapixels': (1e-3, 178),  # Pillow refuses more
    'augment.pad': (0, 2**12),
    'augment.brightness': (0, 1),
    'augment.contrast': (0, 1),
    'augment.saturation': (0, 1),
    'augment.hue': (0, 0.5),
    'augment.randaugment': (0, 100),
    'augment.magnitude': (0, 10),
    'augment.random_erasing': (0, 1),
    'auxiliary_weight': (0, 100),
    'label_smoothing': (0, 0.999),
    'mixup': (0, 100),
    'optimizer.momentum': (0, 0.99999),
    'optimizer.decay': (0, 0.99999),
    'optimizer.beta1': (0, 0.99999),
    'optimizer.beta2': (0, 0.99999),
    'optimizer.epsilon': (0, 10),
    'optimizer.weight_decay': (0, 10),
    'optimizer.clip_norm': (0, 1e9),
    'optimizer.layer_decay': (0.01, 1),
    'schedule.learning_rate': (0, 1e4),
    'schedule.decay_rate': (1e-9, 0.999999),
    'schedule.final': (0, 1),
    'nonfinite_limit': (1, 10**6),
    'ema_decay': (0, 0.9999999),
}


def check(config: ConfigDict, examples: int, num_classes: int, devices: int) -> Durations:
    """Checks the whole config against the data and the number of devices of all processes.

    Returns:
      The durations of the run in steps.

    Raises:
      UserError: the first setting that cannot work; says what to do.
    """
    check_values(config)
    if config.dataset.num_classes not in (None, num_classes):
        raise UserError(
            f'config.dataset.num_classes is {config.dataset.num_classes}, but the data has '
            f'{num_classes} classes; leave it unset to take the number from the data'
        )
    if num_classes < 2 and config.loss == 'softmax':
        raise UserError(
            f'{config.dataset.train_split} has one class only; a classifier needs two or more'
        )
    if config.dataset.num_examples not in (None, examples):
        raise UserError(
            f'config.dataset.num_examples is {config.dataset.num_examples:,}, but '
            f'{config.dataset.train_split} has {examples:,}; leave it unset to take what is there'
        )
    check_batch(config, devices)
    durations = Durations.resolve(config, examples)
    if config.schedule.name == 'exponential' and not durations.decay:
        raise UserError(
            "config.schedule.name is 'exponential'; set config.schedule.decay_epochs too"
        )
    if durations.warmup >= durations.total:
        raise UserError(
            f'the warm-up of {durations.warmup} steps is not shorter than the training of '
            f'{durations.total}; shorten config.schedule.warmup_steps'
        )
    return durations


def check_lowering(config: ConfigDict, platform: str) -> None:
    """Checks that the kind of device, as JAX names it, can do what `config.lowering` says.

    Raises:
      UserError: it cannot.
    """
    if config.lowering == 'pallas' and platform not in ('tpu', 'cpu'):
        raise UserError(
            "config.lowering is 'pallas', whose kernels are for TPUs (and for the interpreter on a "
            "CPU, in tests); leave it at 'auto'"
        )


def check_values(config: ConfigDict) -> None:
    """Checks each value by itself, and the network's options.

    Raises:
      UserError: the first value that is out of range.
    """
    best = [metric.name for metric in metrics.METRICS]
    for path, choices in {**CHOICES, 'best': best}.items():
        if config[path] not in choices:
            raise UserError(
                f'config.{path} is {config[path]!r}{nearest(str(config[path]), map(str, choices))}'
            )
    known, wanted = protocols.of(config).interpolations, protocols.setting(config, 'interpolation')
    if wanted not in known:
        raise UserError(
            f'config.interpolation is {wanted!r}{nearest(str(wanted), known)} '
            f'(config.protocol is {config.protocol!r})'
        )
    for path, (low, high) in RANGES.items():
        value = config[path]
        if value is not None and not low <= value <= high:
            raise UserError(f'config.{path} is {value}; it must be between {low} and {high}')
    for path, top in (('augment.area', 1.0), ('augment.aspect', 100.0)):
        value = protocols.setting(config, path)
        numbers = [x for x in value if isinstance(x, int | float)]
        if len(value) != 2 or len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= top:
            raise UserError(
                f'config.{path} is {value!r}; give (low, high) with 0 < low <= high <= {top}'
            )
    _check_uses(config)
    model = models.build_model(config, num_classes=2)
    if config.image_size < model.min_image_size:
        raise UserError(
            f'config.image_size is {config.image_size}, too small for {config.model}: '
            f'it takes {model.min_image_size} pixels or more'
        )


def _check_uses(config: ConfigDict) -> None:
    """Checks that settings are not given where they do nothing (`UserError`)."""
    dataset = config.dataset
    for name in ('eval_fraction', 'labels'):
        if dataset[name] and dataset.source != 'folder':
            raise UserError(
                f'config.dataset.{name} is for images in folders, and config.dataset.source is '
                f'{dataset.source!r}'
            )
    if dataset.name and dataset.source == 'imagenet':
        raise UserError(
            f'config.dataset.name={dataset.name!r} is a data set of TFDS: add '
            '--config.dataset.source=tfds'
        )
    if dataset.labels and ('{split}' in dataset.labels) == bool(dataset.eval_fraction):
        raise UserError(
            'config.dataset.labels needs either {split} in its name, for a file of each split, or '
            'config.dataset.eval_fraction, for a split of one file'
        )
    if config.loss == 'sigmoid' and config.loss_weights:
        raise UserError("config.loss_weights is for config.loss='softmax'")


def check_batch(config: ConfigDict, devices: int) -> None:
    """Checks that micro-batches, devices and batch-norm groups divide the batch (`UserError`)."""
    size, accumulation = config.batch_size, config.accumulation
    if size % (devices * accumulation):
        per = f'{devices} devices' + (
            f' x {accumulation} micro-batches' if accumulation > 1 else ''
        )
        raise UserError(
            f'config.batch_size is {size}, which cannot be divided over {per}; '
            f'take a multiple of {devices * accumulation}'
        )
    group = config[config.model].get('bn_group_size', 0)
    if group and (size // accumulation) % group:
        raise UserError(
            f'config.{config.model}.bn_group_size is {group}, which does not divide the '
            f'{size // accumulation} images of a step; take a divisor of that'
        )


def check_best(config: ConfigDict, task: metrics.Task, source: Source) -> None:
    """Checks that evaluations on `source` have the metric `config.best`, and use class weights.

    Raises:
      UserError: they have or do not; says what there is.
    """
    names = metrics.applicable(task, source.num_classes, _multi_label(source))
    if config.best not in names:
        raise UserError(
            f'config.best is {config.best!r}, which does not apply to this data; '
            f'choose from {names}'
        )
    if config.dataset.class_weights and 'map100_classes' not in names:
        raise UserError(
            'config.dataset.class_weights weighs MAP@100, which does not apply to this data; '
            'weights in the loss are config.loss_weights'
        )


def _multi_label(source: Source) -> bool:
    for index in range(len(source)):
        with contextlib.suppress(OSError):  # an unreadable file
            return np.ndim(source[index]['label']) == 1
    return False
