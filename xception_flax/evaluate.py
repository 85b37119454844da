"""Measures a checkpoint on its evaluation split, or on another data set.

  python -m xception_flax.evaluate --workdir=/tmp/digits
  python -m xception_flax.evaluate --workdir=/tmp/digits --step=113

The settings are the run's own. With `--config=FILE` (and `--config.SETTING=VALUE`) the data, the
picture size and the crop are that config's; the network stays the run's.
"""

import pathlib
import sys

from absl import app, flags, logging

from xception_flax.config import reading
from xception_flax.runtime.errors import UserError

reading.define_flag()
flags.adopt_module_key_flags(reading)
flags.DEFINE_string('workdir', None, 'Where the network was trained. Required.')
flags.DEFINE_integer('step', None, 'Which checkpoint; the newest by default.')


def main(_: list[str]) -> None:
    """Evaluates by the flags."""
    try:
        if not flags.FLAGS.workdir:
            raise UserError('--workdir is missing; see --help')
        evaluate(pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.step, flags.FLAGS.config)
    except UserError as error:
        sys.exit(f'error: {error}')


def evaluate(workdir: pathlib.Path, step: int | None, config) -> dict[str, dict[str, float]]:
    """Measures the live and, where there are any, the averaged weights; prints what it finds.

    Args:
      workdir: where the network was trained.
      step: which checkpoint; None for the newest.
      config: whose data and pictures to take; None for the run's own.

    Returns:
      'top1', 'top5', 'loss' and 'examples' by the name of the weights.

    Raises:
      UserError: no such checkpoint or data, or data of other classes.
    """
    import jax  # after the flags: their mistakes are told at once

    from xception_flax.config.checks import check_batch, check_values
    from xception_flax.data import sources
    from xception_flax.runtime import mesh as meshes
    from xception_flax.runtime.checkpoints import load_checkpoint
    from xception_flax.runtime.progress import Progress, results_line
    from xception_flax.training.evaluation import evaluate as measure
    from xception_flax.training.step import make_eval_step

    model, averaged, trained = load_checkpoint(workdir, step)
    variables = {'live': averaged}
    if trained.ema_decay:
        variables = {'live': load_checkpoint(workdir, step, 'live')[1], 'averaged': averaged}
    config = config or trained
    check_values(config)
    source = sources.load(config, config.dataset.eval_split)
    if source.num_classes != trained.dataset.num_classes:
        raise UserError(
            f'the network was trained for {trained.dataset.num_classes} classes, but the data has '
            f'{source.num_classes}'
        )
    mesh = meshes.make_mesh()
    check_batch(config, mesh.size)
    everywhere = meshes.replicated(mesh)
    eval_step = jax.jit(
        make_eval_step(model, config), in_shardings=(everywhere, meshes.split(mesh))
    )
    variables = {name: jax.device_put(values, everywhere) for name, values in variables.items()}
    progress = Progress(total=0, visible=jax.process_index() == 0)
    results = measure(eval_step, variables, source, config, mesh, progress)
    for weights, values in results.items():
        progress.say(results_line(config.dataset.eval_split, weights, values))
    return results


if __name__ == '__main__':
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=reading.parse_flags)
