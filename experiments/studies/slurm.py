"""Runs as Slurm jobs, by submitit (extra `[slurm]`)."""

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.studies.runs import Run
from experiments.studies.settings import ROOT
from xception_flax.runtime import stopping
from xception_flax.runtime.errors import UserError


class Job:
    """A run, as each task of a job starts it; the tasks find each other by Slurm's variables.

    submitit pickles it, and before the job's time is up or its place is taken it calls
    `checkpoint` in the first task.
    """

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Runs it to its end.

        Raises:
          RuntimeError: it failed; submitit then calls the job failed.
        """
        status = stopping.STATUS
        while status == stopping.STATUS:
            # Slurm sends its warning to all processes of a job; it is for submitit alone.
            self._process = subprocess.Popen(self.command, cwd=ROOT, preexec_fn=_ignore_warning)
            status = self._process.wait()
        if status:
            raise RuntimeError(f'ended with status {status}')

    def checkpoint(self) -> Any:
        """Lets the run save, and asks for the job to be queued again."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            # This is inside a signal's handler, which came in the middle of `Popen.wait`.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.command))


def _ignore_warning() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def submit(
    runs: Sequence[Run], folder: pathlib.Path, parameters: Mapping[str, Any], cluster: str = 'slurm'
) -> Iterator[tuple[Run, Any]]:
    """Submits what is not done; a run that is submitted twice is claimed by the first job alone.

    Args:
      runs: of a study.
      folder: for submitit's files and the jobs' output.
      parameters: of submitit's AutoExecutor, such as 'slurm_partition' and 'gpus_per_node'.
      cluster: 'slurm', or another that submitit knows.

    Yields:
      Each run that is not done, and its job.

    Raises:
      UserError: there is no submitit, no Slurm, or no such parameter.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher=slurm needs submitit: pip install -e '.[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'submitit: {" ".join(str(error).split())}') from error
    for run in runs:
        if not run.standing().done:
            executor.update_parameters(name=run.name.replace('/', '-'))
            yield run, executor.submit(Job(run.command))
