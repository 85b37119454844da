"""Several processes as one program: joining, comparing, agreeing to stop."""

import faulthandler
import os
import re
import signal
import sys
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from xception_flax.base.errors import UserError
from xception_flax.base.signals import STATUS, StopSignals

BY_HAND = 'give --coordinator=HOST:PORT --processes=N --process=I'
# Variables that tell a process of how many it is one; what to do if JAX does not find the others.
ANNOUNCED = {
    'SLURM_STEP_NUM_TASKS': BY_HAND,  # srun; a shell in a job has SLURM_NTASKS, and is alone
    'OMPI_COMM_WORLD_SIZE': BY_HAND,  # Open MPI; JAX knows the versions before 5
    'PMI_SIZE': BY_HAND,  # MPICH, Intel MPI
    'SKYPILOT_NUM_NODES': BY_HAND,
    'TPU_WORKER_HOSTNAMES': "pip install -e '.[tpu]'",
    'MEGASCALE_NUM_SLICES': "pip install -e '.[tpu]'",
    'JOB_COMPLETION_INDEX': "pip install -e '.[k8s]'",  # Kubernetes: from 0
}


def join(coordinator: str | None, count: int | None, index: int | None, seconds: int) -> None:
    """Starts JAX's distributed runtime; must be called before any other use of JAX.

    On Cloud TPU, Slurm, Open MPI and Kubernetes JAX finds the processes itself; elsewhere the three
    arguments describe them. Without either, this process is the only one.

    Args:
      coordinator: 'host:port' of process 0.
      count: number of processes; 1 alone, without the others, looks for none.
      index: index of this process.
      seconds: time to wait for other processes, at the start and when one goes silent.

    Raises:
      UserError: only some of the arguments are given, or they are invalid; or JAX does not find the
        others of several processes.
    """
    if (coordinator, count, index) == (None, 1, None):
        return
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError('--coordinator, --processes and --process go together: give all three')
    if coordinator and not re.fullmatch(r'.+:\d+', coordinator):
        raise UserError(f'--coordinator={coordinator} is no address; give HOST:PORT of process 0')

    def give_up() -> None:
        where = f' at {coordinator}' if coordinator else ''
        print(
            f'error: not all processes joined{where} within {seconds} s: start all of them, with '
            'the same address and number; --patience=SECONDS waits longer',
            file=sys.stderr,
            flush=True,
        )
        os._exit(STATUS)  # the missing one may come back

    # JAX's own timeout aborts the process with a stack dump.
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    # JAX's handler of SIGTERM would replace ours.
    optional = hasattr(jax.config, 'jax_enable_preemption_service')  # not yet in JAX 0.7
    if optional:
        jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=seconds,
        )
    except ValueError as error:
        if any(given):
            raise UserError(f'--coordinator, --processes, --process: {error}') from error
    except jax.errors.JaxRuntimeError:
        raise
    except Exception as error:  # of many types, one for each kind of cluster
        reason = ' '.join(str(error).split())
        raise UserError(
            f'JAX could not find the other processes ({type(error).__name__}: {reason}); '
            f'{BY_HAND}, or --processes=1 if there are none'
        ) from error
    else:
        if not optional:
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        # When another process dies, JAX reports it and aborts; a stack dump does not help.
        faulthandler.disable()
    finally:
        timer.cancel()
    if not any(given):
        _check_all_found(os.environ)


def _check_all_found(environ: Mapping[str, str]) -> None:
    """Checks that JAX has found other processes, if the environment says that there are some."""
    for name, advice in ANNOUNCED.items():
        if _announced(name, environ.get(name, '')) > 1 and not several():
            raise UserError(
                f'{name}={environ[name]} says that this is one of several processes, but JAX found '
                f'no other: each would train alone; {advice}, or --processes=1 if that is meant'
            )


def _announced(name: str, value: str) -> int:
    """Number of processes, at least, that a variable of `ANNOUNCED` announces."""
    if name == 'TPU_WORKER_HOSTNAMES':
        return len(value.split(','))
    number = int(value) if value.isdecimal() else 0
    return number + 1 if name == 'JOB_COMPLETION_INDEX' else number


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def check_same(text: str, what: str) -> None:
    """Checks that all processes have the same text.

    Raises:
      UserError: the texts differ; raised in all processes.
    """
    sums = gather(np.uint32(zlib.crc32(text.encode())))
    if len(set(sums.tolist())) > 1:
        different = int(np.flatnonzero(sums != sums[0])[0])
        raise UserError(
            f'process {different} was started with {what} that differ from those of process 0'
        )


def gather(value: np.generic | np.ndarray) -> np.ndarray:
    """The value of each process, `[processes, ...]`; waits for all of them."""
    if jax.process_count() == 1:
        return np.asarray([value])
    found = np.asarray(multihost_utils.process_allgather(value))
    return found.reshape(-1, *np.shape(value))


def stop_agreed(stop: StopSignals | None, done: Mapping[str, Any] | None) -> bool:
    """Whether all processes stop now, because one of them got a signal.

    A stop request travels in the batch (`mesh.global_batches`), so every process sees it in the
    same step's results.

    Args:
      stop: this process's signals; None, in all processes, if none are watched.
      done: results of the newest finished step; None before the first.
    """
    if stop is None:
        return False
    if jax.process_count() == 1:
        return stop.requested is not None
    return done is not None and float(done['stop']) > 0
