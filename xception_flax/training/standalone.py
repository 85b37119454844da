"""Evaluates trained networks outside of a run."""

from typing import Any

import jax
from ml_collections import ConfigDict

from xception_flax.base import mesh as meshes
from xception_flax.base.errors import UserError
from xception_flax.data import imagenet_sets, sources
from xception_flax.data.reader import Reader
from xception_flax.data.sources import Source, exclusion
from xception_flax.runtime.progress import Progress
from xception_flax.training.checks import check_batch, check_values
from xception_flax.training.evaluation import compiled_step, evaluate, task_of
from xception_flax.training.metrics import results_line
from xception_flax.training.step import choose_operations
from xception_flax.weights import Trained

# Settings that belong to a network, whatever data it is measured on.
IMAGES = ('image_size', 'protocol', 'crop_fraction', 'interpolation')


def settings_for(trained: ConfigDict, file: ConfigDict | None, given: dict[str, Any]) -> ConfigDict:
    """The settings to measure a network by.

    Args:
      trained: those of the network.
      file: those of a config file, whose data is measured; None without one.
      given: settings of the command line by path, which come before all others.
    """
    config = (file or trained).copy_and_resolve_references()
    config.update({setting: trained[setting] for setting in IMAGES})
    config.update_from_flattened_dict(given)
    return config


def evaluate_networks(
    nets: dict[str, Trained],
    config: ConfigDict,
    crops: int | None = None,
    exclude: str | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluates networks of one architecture, by the name of their weights; prints the results.

    The data, its split and its images are those of `config`. `exclude` is a file of images that do
    not count (`data.sources.exclusion`). Returns what `evaluate` returns.

    Raises:
      UserError: the data is not there, or has other classes.
    """
    net = next(iter(nets.values()))
    config = _settings(net.config, config, crops)
    progress = Progress(total=0, visible=jax.process_index() == 0)
    source = sources.load(config, config.dataset.eval_split)
    _check_classes(net, source)
    if exclude:
        whole = len(source)
        source, unmatched = exclusion.exclude(source, exclude, config.loader_threads)
        progress.say(f'{whole - len(source):,} of {whole:,} images are excluded')
        for line in unmatched:
            progress.say(f'warning: {exclude}: there is no image {line!r}')
    mesh = meshes.make_mesh()
    check_batch(config, mesh.size)
    # By way of the host, from where every process takes what its own devices need.
    variables = jax.device_put(
        jax.device_get({weights: net.variables for weights, net in nets.items()}),
        meshes.replicated(mesh),
    )
    choose_operations(net.model, net.variables, config, mesh, (config.batch_size,), progress.say)
    task = task_of(config, source)
    eval_step = compiled_step(net.model, config, mesh, task)
    reader = Reader(source, config.max_unreadable, jax.process_count(), config.max_megapixels)
    results = evaluate(eval_step, variables, reader, config, mesh, progress, task)
    for weights in nets:  # in this order
        progress.say(results_line(config.dataset.eval_split, weights, results[weights]))
    return results


def _check_classes(net: Trained, source: Source) -> None:
    """Checks that the classes of the data are those of the network, by number and by name."""
    if source.num_classes != net.model.num_classes:
        raise UserError(
            f'the network was trained for {net.model.num_classes} classes, but the data has '
            f'{source.num_classes}'
        )
    names, ids = net.class_names, list(imagenet_sets.imagenet_classes())
    if names is None and set(source.class_names) == set(ids):
        names = tuple(ids)
    for number, (trained, found) in enumerate(zip(names or (), source.class_names, strict=False)):
        if trained != found:
            raise UserError(
                f'the data has other classes than the network: class {number} is {found!r} there, '
                f'and {trained!r} in training'
            )


def _settings(trained: ConfigDict, config: ConfigDict, crops: int | None) -> ConfigDict:
    """The data of `config` with the network of `trained`."""
    config = config.copy_and_resolve_references()
    for setting in ('model', 'loss', 'dtype', 'preprocessing'):
        config[setting] = trained[setting]
    config[trained.model] = trained[trained.model]
    config.crops = crops or config.crops
    if imagenet_sets.is_cropped(config.dataset.name):
        config.crop_fraction = 1.0
    check_values(config)
    return config
