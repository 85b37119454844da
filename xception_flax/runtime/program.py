"""What each program does around its own work: flags, other processes, mistakes told in one line."""

import functools
import sys
from collections.abc import Callable

from absl import app, flags, logging

from xception_flax.config import reading
from xception_flax.runtime import stopping
from xception_flax.runtime.errors import UserError

reading.define_flag()
flags.adopt_module_key_flags(reading)
flags.DEFINE_string('workdir', None, 'Where checkpoints, logs and curves are, or will be.')
flags.DEFINE_string(
    'coordinator',
    None,
    'host:port of process 0, where neither Cloud TPU nor Slurm tells of several processes.',
)
flags.DEFINE_integer('processes', None, 'With --coordinator: how many processes there are.')
flags.DEFINE_integer('process', None, 'With --coordinator: which one this is, from 0.')
flags.DEFINE_integer(
    'patience', 120, 'Seconds to wait for other processes, at the start and when one goes silent.'
)


def run(work: Callable[[], None], needs: tuple[str, ...]) -> None:
    """Runs a program's work with the flags parsed, and ends the process.

    The status is 0, 1 after an error, 75 when a signal has stopped a run that can go on.

    Args:
      work: the program's own part.
      needs: flags that must be given.
    """
    logging.set_verbosity(logging.WARNING)  # orbax and grain tell much; --verbosity=0 shows it
    app.run(functools.partial(_run, work, needs), flags_parser=reading.parse_flags)


def _work(work: Callable[[], None]) -> None:
    """Does the work; when another process dies, a collective operation fails here, too."""
    import jax

    try:
        work()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f'perhaps another process has died; start all again: {reason}') from error


def _run(work: Callable[[], None], needs: tuple[str, ...], _: list[str]) -> None:
    values = flags.FLAGS
    try:
        for name in needs:
            if not values[name].value:
                raise UserError(f'--{name} is missing; see --help')
        if '://' in (values.workdir or ''):
            raise UserError(f'--workdir={values.workdir} is no path; mount the bucket first')
        from xception_flax.runtime import hosts  # JAX, after the flags' mistakes are told

        hosts.join(values.coordinator, values.processes, values.process, values.patience)
        _work(work)
    except (UserError, OSError) as error:  # a full disk, a folder that may not be written
        logging.debug('the error came from here', exc_info=True)
        sys.exit(f'error: {error}')
    except stopping.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopping.STATUS)
    except KeyboardInterrupt:
        sys.exit('interrupted')
