"""Submits runs as Slurm jobs, by submitit (extra `[slurm]`)."""

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.studies.settings import ROOT
from experiments.studies.trials import Trial
from xception_flax.base import extras, signals
from xception_flax.base.errors import UserError


class Job:
    """A run as each task of a job starts it; the tasks find each other by Slurm's variables.

    submitit pickles it. Before the job times out or is preempted, submitit calls `checkpoint` in
    the first task.
    """

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Runs the command to its end.

        Raises:
          RuntimeError: it failed; submitit then reports the job as failed.
        """
        status = signals.STATUS
        while status == signals.STATUS:
            # Slurm sends its warning to all processes of a job; only submitit should take it.
            self._process = subprocess.Popen(self.command, cwd=ROOT, preexec_fn=_ignore_warning)
            status = self._process.wait()
        if status:
            raise RuntimeError(f'ended with status {status}')

    def checkpoint(self) -> Any:
        """Lets the run save, and asks submitit to queue the job again."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            # This is a signal handler, which interrupts `Popen.wait`.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.command))


def _ignore_warning() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def submit(
    trials: Sequence[Trial],
    folder: pathlib.Path,
    parameters: Mapping[str, Any],
    cluster: str = 'slurm',
) -> Iterator[tuple[Trial, Any]]:
    """Submits the runs that are not done; of two jobs for one run only the first trains it.

    Args:
      trials: runs of a study.
      folder: for submitit's files and the jobs' output.
      parameters: of submitit's AutoExecutor, such as 'slurm_partition' and 'gpus_per_node'.
      cluster: 'slurm', or another cluster that submitit supports.

    Yields:
      Each run that is not done, and its job.

    Raises:
      UserError: submitit or Slurm is missing, or a parameter does not exist.
    """
    with extras.needed('slurm', '--launcher=slurm'):
        import submitit
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'submitit: {" ".join(str(error).split())}') from error
    for trial in trials:
        if not trial.standing().done:
            executor.update_parameters(name=trial.name.replace('/', '-'))
            yield trial, executor.submit(Job(trial.command))
