"""Trains a network, or goes on training it.

  python -m xception_flax.main --config=configs/digits.py --workdir=/tmp/digits

The same command again goes on from the newest checkpoint in the workdir, or says that the run is
complete. SIGTERM and Ctrl-C save and end with status 75: start it again. Any setting of
xception_flax/config/schema.py is changed on the command line:

  --config.total_epochs=10 --config.batch_size=256 --config.xception.residual=False
"""

import functools
import pathlib

from absl import flags

from xception_flax.runtime import program, stopping

flags.adopt_module_key_flags(program)


def main(stop: stopping.StopSignals) -> None:
    """Trains by the flags, until it is done or a signal comes."""
    from xception_flax.training import loop  # slow to import

    workdir = pathlib.Path(flags.FLAGS.workdir).expanduser().absolute()
    loop.train(flags.FLAGS.config, workdir, stop)


if __name__ == '__main__':
    with stopping.StopSignals() as signals:  # as early as can be
        program.run(functools.partial(main, signals), needs=('config', 'workdir'))
