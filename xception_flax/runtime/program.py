"""The frame of every program: flags, other processes, errors in one line."""

import functools
import logging as standard_logging
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from xception_flax.base import memory, signals
from xception_flax.base.errors import UserError
from xception_flax.config import reading

COMPILED = '.compiled'  # folder of compiled programs, unless $JAX_COMPILATION_CACHE_DIR is set

reading.define_flag()
flags.adopt_module_key_flags(reading)
flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, logs, curves.')
flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of process 0; not needed on Cloud TPU and Slurm, which announce all processes.',
)
flags.DEFINE_integer(
    'processes', None, 'With --coordinator: number of processes. Alone, --processes=1: no others.'
)
flags.DEFINE_integer('process', None, 'With --coordinator: index of this process, from 0.')
flags.DEFINE_integer(
    'patience', 120, 'Seconds to wait for other processes, at the start and when one goes silent.'
)


def run(
    work: Callable[..., None],
    needs: tuple[str, ...] = (),
    alone: bool = False,
    arguments: str = '',
    changes: bool = False,
) -> None:
    """Parses the flags, runs a program's work, and ends the process.

    The status is 0; 1 after an error that somebody has to fix; 75 where the same command resumes
    the work: after a signal, or when another process is missing or has died.

    Args:
      work: the program's own part, called with the arguments.
      needs: flags that must be given.
      alone: whether the program is always a single process.
      arguments: names of its arguments, as for `reading.parse_flags`.
      changes: whether it takes settings without --config=FILE, likewise.
    """
    memory.keep_freed()
    logging.set_verbosity(logging.WARNING)  # orbax and grain log much; --verbosity=0 shows it
    for logger in (logging.get_absl_logger(), standard_logging.getLogger('asyncio')):
        logger.addFilter(_is_news)
    sys.unraisablehook = _print_unraisable
    app.run(
        functools.partial(_run, work, needs, alone),
        flags_parser=functools.partial(reading.parse_flags, arguments=arguments, changes=changes),
    )


def _run(work: Callable[..., None], needs: tuple[str, ...], alone: bool, argv: list[str]) -> None:
    import jax

    from xception_flax.base import processes  # imports JAX, which takes a second

    values = flags.FLAGS
    try:
        for name in sorted(_key_flags(__name__) - _key_flags(sys.argv[0])):
            if values[name].present:
                raise UserError(f'--{name} has no effect in this program; see --help')
        for name in needs:
            if not values[name].value:
                raise UserError(f'--{name} is missing; see --help')
        if values.workdir and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
            # For the next start and for other runs of the same network.
            jax.config.update('jax_compilation_cache_dir', str(_compiled(values.workdir)))
        if not alone:
            processes.join(values.coordinator, values.processes, values.process, values.patience)
        work(*argv[1:])
    except (UserError, OSError) as error:  # a full disk, a folder that may not be written
        logging.debug('the error came from here', exc_info=True)
        _end(f'error: {error}', 1, processes.several())
    except signals.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(signals.STATUS)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not processes.several():
            raise
        # A collective operation raises one of these when a process is gone.
        reason = f'{type(error).__name__}: {str(error).splitlines()[0]}'
        _end(
            f'error: perhaps another process has died; start all again ({reason})',
            signals.STATUS,
            at_once=True,
        )
    except KeyboardInterrupt:
        sys.exit('interrupted')


def _compiled(workdir: str) -> pathlib.Path:
    """The folder of compiled programs: beside the run, on this machine for one in a bucket."""
    if '://' in workdir:
        import pooch  # slow to import

        return pooch.os_cache('xception_flax') / COMPILED
    return pathlib.Path(workdir).expanduser().absolute().parent / COMPILED


def _is_news(record: Any) -> bool:
    """Whether a record of the log tells something that is not said elsewhere.

    Errors of orbax are raised, too; asyncio logs what orbax has started beside them, and waits for
    no more. grain warns that with an older JAX it cannot profile processes, which nobody asked for.
    """
    theirs = record.name == 'asyncio' or '/orbax/' in record.pathname
    raised = record.levelname in ('ERROR', 'CRITICAL') and theirs
    idle = '/grain/_src/core/profiler' in record.pathname
    return logging.get_verbosity() >= logging.INFO or not (raised or idle)


def _print_unraisable(error: Any) -> None:
    """Prints an error of a callback, but not those of arrays whose checkpoint has failed.

    Each that tensorstore has written later finds nobody waiting for it.
    """
    if str(error.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(error)


def _key_flags(module: str) -> set[str]:
    """The flags that a module has defined or adopted, which `--help` shows."""
    return {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}


def _end(message: str, status: int, at_once: bool) -> None:
    """Prints a message and ends; `at_once` does not wait for other processes."""
    print(message, file=sys.stderr, flush=True)
    if at_once:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
