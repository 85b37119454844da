"""Several processes as one program: joining, comparing, agreeing to stop."""

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

from xception_flax.base.errors import UserError
from xception_flax.base.signals import STATUS, StopSignals


def join(coordinator: str | None, count: int | None, index: int | None, seconds: int) -> None:
    """Starts JAX's distributed runtime; must be called before any other use of JAX.

    On Cloud TPU pods, Slurm, Open MPI and Kubernetes JAX finds the processes itself; elsewhere the
    three arguments describe them. Without either, this process is the only one.

    Args:
      coordinator: 'host:port' of process 0.
      count: number of processes.
      index: index of this process.
      seconds: time to wait for other processes, at the start and when one goes silent.

    Raises:
      UserError: only some of the arguments are given, or they are invalid.
    """
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
    if hasattr(jax.config, 'jax_enable_preemption_service'):  # from JAX 0.8 on
        # Its SIGTERM handler would replace ours.
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
        # When another process dies, JAX reports it and aborts; a stack dump does not help.
        faulthandler.disable()
    finally:
        timer.cancel()


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


def gather(value: np.generic) -> np.ndarray:
    """The value of each process, `[processes]`; waits for all of them."""
    if jax.process_count() == 1:
        return np.asarray([value])
    return np.asarray(multihost_utils.process_allgather(value)).reshape(-1)


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
