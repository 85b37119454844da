"""Several processes as one program: joining them, and agreeing."""

import faulthandler
import os
import re
import sys
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from xception_flax.runtime.errors import UserError
from xception_flax.runtime.stopping import STATUS, StopSignals


def join(coordinator: str | None, count: int | None, index: int | None, seconds: int) -> None:
    """Starts JAX's distributed runtime, before anything else is asked of JAX.

    Cloud TPU pods, Slurm, Open MPI and Kubernetes tell JAX all that it has to know; elsewhere the
    three arguments do. With neither, this process is the only one.

    Args:
      coordinator: 'host:port' of process 0.
      count: number of processes.
      index: number of this process.
      seconds: how long to wait for the others at the start, and later for one that is silent.

    Raises:
      UserError: only some of the arguments are given, or they make no sense.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError('--coordinator, --processes and --process go together: give all three')
    if coordinator and not re.fullmatch(r'.+:\d+', coordinator):
        raise UserError(f'--coordinator={coordinator} is no address; give HOST:PORT of process 0')

    def give_up() -> None:
        where = f' at {coordinator}' if coordinator else ''
        print(
            f'error: the processes did not meet{where} within {seconds} s: start all of them, with '
            'the same address and number; --patience=SECONDS waits longer',
            file=sys.stderr,
            flush=True,
        )
        os._exit(STATUS)  # the missing one may come back

    # JAX's own end of waiting would abort the process with a dump of its stack.
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    # Its handler of SIGTERM would take the place of ours.
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
    else:
        # When another process dies, JAX says so and aborts; the stack below it says nothing.
        faulthandler.disable()
    finally:
        timer.cancel()


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def check_same(text: str, what: str) -> None:
    """Checks that all processes have the same text.

    Raises:
      UserError: they have not, on all of them.
    """
    sums = gather(np.uint32(zlib.crc32(text.encode())))
    if len(set(sums.tolist())) > 1:
        different = int(np.flatnonzero(sums != sums[0])[0])
        raise UserError(
            f'process {different} was started with {what} that differ from those of process 0'
        )


def gather(value: np.generic) -> np.ndarray:
    """The value of each process, `[processes]`; waits for all of them."""
    if jax.process_count() == 1:
        return np.asarray([value])
    return np.asarray(multihost_utils.process_allgather(value)).reshape(-1)


def stop_agreed(stop: StopSignals | None, done: Mapping[str, Any] | None) -> bool:
    """Whether all hosts are to stop now, as a signal has come to one of them.

    The wish of one travels in its share of a batch (`mesh.global_batches`), so that all see it in
    the results of the same step, at no cost of communication.

    Args:
      stop: this host's signals; None, on all hosts, where none are watched for.
      done: the newest results of a step that the devices have done; None before the first.
    """
    if stop is None:
        return False
    if jax.process_count() == 1:
        return stop.requested is not None
    return done is not None and float(done['stop']) > 0
