"""Measures a checkpoint, or weights of Keras or timm, on an evaluation split.

  python -m xception_flax.evaluate --workdir=/tmp/digits
  python -m xception_flax.evaluate --workdir=/tmp/digits --step=113
  python -m xception_flax.evaluate --weights=xception.weights.h5 --config=configs/imagenet.py \
      --config.dataset.data_dir=/data

The settings are the run's own. With `--config=FILE` (and `--config.SETTING=VALUE`) the data, the
picture size and the crop are that config's; the network stays the run's. Weights (whatever
xception_flax.convert reads) bring their own size, crop and preprocessing, and the config the data:
ImageNet, if there is none. Other test sets of ImageNet's classes are named in the config:

  python -m xception_flax.evaluate --workdir=/tmp/imagenet --config=configs/imagenet.py \
      --config.dataset.name=imagenet_v2/matched-frequency --config.dataset.eval_split=test

  imagenet_v2/..., imagenet_sketch, imagenet2012_corrupted/fog_3   as ImageNet itself
  imagenet2012_real    right is any of a picture's labels; pictures without one do not count
  imagenet_a, imagenet_r    both among all 1000 classes and among the 200 that occur
"""

import pathlib

from absl import flags

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

flags.adopt_module_key_flags(program)
flags.DEFINE_string('weights', None, 'Weights to measure, in place of --workdir.')
flags.DEFINE_integer('step', None, 'Which checkpoint; the newest by default.')
flags.DEFINE_enum(
    'crops',
    None,
    ('1', '10', '144'),
    'In place of config.crops: the centre; centre, corners and their mirrors, averaged; or '
    "Inception's.",
)
flags.DEFINE_string(
    'exclude',
    None,
    'File of pictures that do not count: names or numbers, one a line, as in '
    'ILSVRC2014_clsloc_validation_blacklist.txt.',
)

PICTURES = ('image_size', 'crop_fraction', 'interpolation', 'preprocessing')


def main() -> None:
    """Evaluates by the flags."""
    values = flags.FLAGS
    if bool(values.weights) == bool(values.workdir):
        raise UserError('give either --workdir=DIR or --weights=FILE')
    crops = int(values.crops) if values.crops else None
    if values.weights:
        evaluate_weights(values.weights, values.config, crops, values.exclude)
    else:
        evaluate(pathlib.Path(values.workdir), values.step, values.config, crops, values.exclude)


def evaluate(
    workdir: pathlib.Path, step: int | None, config, crops: int | None, exclude: str | None
) -> dict[str, dict[str, float]]:
    """Measures the live and, where there are any, the averaged weights; prints what it finds.

    Args:
      workdir: where the network was trained.
      step: which checkpoint; None for the newest.
      config: whose data and pictures to take; None for the run's own.
      crops: of each picture; None for the config's.
      exclude: file of pictures that do not count; None for no such.

    Returns:
      What `training.evaluation.evaluate` finds, by the name of the weights.

    Raises:
      UserError: no such checkpoint or data, or data of other classes.
    """
    import jax  # after the flags: their mistakes are told at once

    from xception_flax.config import reading
    from xception_flax.runtime.checkpoints import load_all_weights

    dtype = reading.from_json(workdir / 'config.json').dtype
    jax.config.update('jax_enable_x64', dtype == 'float64')
    model, variables, trained = load_all_weights(workdir, step)
    config = trained if config is None else config
    config.preprocessing = trained.preprocessing
    return _measure(model, variables, trained, config, crops, exclude)


def evaluate_weights(
    weights: str, config, crops: int | None, exclude: str | None
) -> dict[str, dict[str, float]]:
    """Like `evaluate`, of what `load_pretrained` reads; only the data is the config's."""
    from xception_flax.pretrained import load_pretrained

    model, variables, loaded = load_pretrained(weights)
    config = loaded if config is None else config
    for setting in PICTURES:
        config[setting] = loaded[setting]
    return _measure(model, {'loaded': variables}, loaded, config, crops, exclude)


def _measure(model, variables, trained, config, crops, exclude) -> dict[str, dict[str, float]]:
    import jax

    from xception_flax.config.checks import check_batch, check_values
    from xception_flax.data import imagenet_sets, sources
    from xception_flax.data.reader import Reader
    from xception_flax.data.sources import exclusion
    from xception_flax.runtime import mesh as meshes
    from xception_flax.runtime.progress import Progress, results_line
    from xception_flax.training import evaluation

    config.model, config.loss = trained.model, trained.loss
    config[trained.model] = trained[trained.model]
    config.crops = crops or config.crops
    if imagenet_sets.is_cropped(config.dataset.name):
        config.crop_fraction = 1.0
    check_values(config)
    progress = Progress(total=0, visible=jax.process_index() == 0)
    source = sources.load(config, config.dataset.eval_split)
    if source.num_classes != trained.dataset.num_classes:
        raise UserError(
            f'the network was trained for {trained.dataset.num_classes} classes, but the data has '
            f'{source.num_classes}'
        )
    if exclude:
        path, whole = pathlib.Path(exclude).expanduser(), len(source)
        source, unmatched = exclusion.exclude(source, path, config.loader_threads)
        progress.say(f'{whole - len(source):,} of {whole:,} pictures are excluded')
        for line in unmatched:
            progress.say(f'warning: {path}: there is no picture {line!r}')
    mesh = meshes.make_mesh()
    check_batch(config, mesh.size)
    # By way of the host, from which every process takes what its own devices need.
    variables = jax.device_put(jax.device_get(variables), meshes.replicated(mesh))
    eval_step = evaluation.compiled_step(model, config, mesh, source)
    reader = Reader(source, config.max_unreadable, jax.process_count())
    results = evaluation.evaluate(eval_step, variables, reader, config, mesh, progress)
    for weights, values in results.items():
        progress.say(results_line(config.dataset.eval_split, weights, values))
    return results


if __name__ == '__main__':
    program.run(main)
