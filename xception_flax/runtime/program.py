"""What each program does around its own work: flags, other processes, mistakes told in one line."""

import functools
import os
import pathlib
import sys
from collections.abc import Callable

from absl import app, flags, logging

from xception_flax.config import reading
from xception_flax.runtime import memory, stopping
from xception_flax.runtime.errors import UserError

COMPILED = '.compiled'  # where $JAX_COMPILATION_CACHE_DIR does not say

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


def run(
    work: Callable[..., None],
    needs: tuple[str, ...] = (),
    alone: bool = False,
    arguments: str = '',
) -> None:
    """Runs a program's work with the flags parsed, and ends the process.

    The status is 0; 1 after an error that somebody has to mend; 75 where the same command, started
    again, goes on: after a signal, or when another process is missing or has died.

    Args:
      work: the program's own part; it is given the arguments.
      needs: flags that must be given.
      alone: whether the program is one process wherever it is started.
      arguments: names of what it takes besides flags, as for `reading.parse_flags`.
    """
    memory.keep_freed()
    logging.set_verbosity(logging.WARNING)  # orbax and grain tell much; --verbosity=0 shows it
    app.run(
        functools.partial(_run, work, needs, alone),
        flags_parser=functools.partial(reading.parse_flags, arguments=arguments),
    )


def _run(work: Callable[..., None], needs: tuple[str, ...], alone: bool, argv: list[str]) -> None:
    import jax

    from xception_flax.runtime import hosts  # after the flags, whose mistakes are told at once

    values = flags.FLAGS
    try:
        for name in sorted(_key_flags(__name__) - _key_flags(sys.argv[0])):
            if values[name].present:
                raise UserError(f'--{name} means nothing to this program; see --help')
        for name in needs:
            if not values[name].value:
                raise UserError(f'--{name} is missing; see --help')
        if '://' in (values.workdir or ''):
            raise UserError(f'--workdir={values.workdir} is no path; mount the bucket first')
        if values.workdir and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
            # What XLA has compiled, for the next start and for other runs of the same network.
            beside = pathlib.Path(values.workdir).expanduser().absolute().parent / COMPILED
            jax.config.update('jax_compilation_cache_dir', str(beside))
        if not alone:
            hosts.join(values.coordinator, values.processes, values.process, values.patience)
        work(*argv[1:])
    except (UserError, OSError) as error:  # a full disk, a folder that may not be written
        logging.debug('the error came from here', exc_info=True)
        _end(f'error: {error}', 1, hosts.several())
    except stopping.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopping.STATUS)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not hosts.several():
            raise
        # What a collective operation raises when a process is gone.
        reason = f'{type(error).__name__}: {str(error).splitlines()[0]}'
        _end(
            f'error: perhaps another process has died; start all again ({reason})',
            stopping.STATUS,
            at_once=True,
        )
    except KeyboardInterrupt:
        sys.exit('interrupted')


def _key_flags(module: str) -> set[str]:
    """The flags that a module has defined or adopted, by which `--help` shows them."""
    return {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}


def _end(message: str, status: int, at_once: bool) -> None:
    """Ends with a message; `at_once`: without waiting for other processes, which may wait, too."""
    print(message, file=sys.stderr, flush=True)
    if at_once:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
