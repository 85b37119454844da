"""Trains a network, or resumes its training.

  python -m xception_flax.main --config=configs/digits.py --workdir=/tmp/digits

The same command resumes from the newest checkpoint in the workdir, or reports that the run is
complete. SIGTERM and Ctrl-C save and end with status 75: start it again. Every setting of
xception_flax/config/schema.py can be changed on the command line:

  --config.total_epochs=10 --config.batch_size=256 --config.xception.residual=False
"""

import functools

from absl import flags

from xception_flax.base.signals import StopSignals
from xception_flax.runtime import program

flags.adopt_module_key_flags(program)


def main(stop: StopSignals) -> None:
    """Trains by the flags, until it is done or a signal comes."""
    from xception_flax.base import paths
    from xception_flax.training import loop  # slow to import

    workdir = paths.folder(flags.FLAGS.workdir, writing=True)
    loop.train(flags.FLAGS.config, workdir, stop)


if __name__ == '__main__':
    with StopSignals() as stop:  # as early as possible
        program.run(functools.partial(main, stop), needs=('config', 'workdir'))
