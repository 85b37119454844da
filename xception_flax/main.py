"""Trains a network, or goes on training it.

  python -m xception_flax.main --config=configs/digits.py --workdir=/tmp/digits

The same command again goes on from the newest checkpoint in the workdir, or says that the run is
complete. Any setting of xception_flax/config/schema.py is changed on the command line:

  --config.total_epochs=10 --config.batch_size=256 --config.xception.residual=False
"""

import pathlib
import sys

from absl import app, flags, logging

from xception_flax.config import reading
from xception_flax.runtime.errors import UserError

reading.define_flag()
flags.adopt_module_key_flags(reading)
flags.DEFINE_string('workdir', None, 'Where checkpoints, logs and curves go. Required.')


def main(_: list[str]) -> None:
    """Trains by the flags."""
    from xception_flax.training import loop  # after the flags: their mistakes are told at once

    try:
        for name in ('config', 'workdir'):
            if not flags.FLAGS[name].value:
                raise UserError(f'--{name} is missing; see --help')
        if '://' in flags.FLAGS.workdir:
            raise UserError(f'--workdir={flags.FLAGS.workdir} is no path; mount the bucket first')
        loop.train(flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir).expanduser().absolute())
    except UserError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted: the same command goes on from the newest checkpoint')


if __name__ == '__main__':
    logging.set_verbosity(logging.WARNING)  # orbax and grain tell much; --verbosity=0 shows it
    app.run(main, flags_parser=reading.parse_flags)
