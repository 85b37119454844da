"""Submits runs to GKE as JobSets, by xpk (`pip install xpk`, in an environment of its own)."""

import hashlib
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence

from experiments.studies.trials import Trial
from xception_flax.base import signals
from xception_flax.base.errors import UserError

LONGEST_NAME = 28  # of a workload; what the cluster adds has to fit into 63 characters
RESTARTS = 100  # of a workload whose machines are preempted


def name(trial: Trial) -> str:
    """A name that Kubernetes accepts: the end of the run's own, with a hash of its folder."""
    digest = hashlib.sha256(str(trial.workdir).encode()).hexdigest()[:6]
    plain = re.sub('[^a-z0-9]+', '-', trial.name.lower())
    return f'{plain[-(LONGEST_NAME - 7) :].lstrip("-0123456789")}-{digest}'


def command(trial: Trial, arguments: Sequence[str]) -> list[str]:
    """The command that submits a run.

    By default, xpk lets a workload fail whose processes end with status 75 after saving.

    Args:
      trial: a run.
      arguments: of `xpk workload create`, without '--', such as 'cluster=NAME'.
    """
    # xpk sends SIGTERM to the shell that it starts the command in: `exec` puts Python in its place.
    run = shlex.join(['exec', 'python', *trial.command[1:]])
    return [
        'xpk', 'workload', 'create', f'--workload={name(trial)}', f'--command={run}',
        f'--restart-on-exit-codes={signals.STATUS}', f'--max-restarts={RESTARTS}',
        *(f'--{argument}' for argument in arguments),
    ]  # fmt: skip


def submit(trials: Sequence[Trial], arguments: Sequence[str]) -> Iterator[Trial]:
    """Submits the runs that are not done; of two workloads for one run only the first trains it.

    Args:
      trials: runs of a study.
      arguments: as for `command`.

    Yields:
      Each run that is submitted.

    Raises:
      UserError: xpk is missing, or has refused runs; the others are submitted.
    """
    refused = []
    for trial in trials:
        if trial.standing().done:
            continue
        try:
            subprocess.run(command(trial, arguments), check=True)
            yield trial
        except FileNotFoundError:
            raise UserError('--launcher=xpk needs xpk on the PATH: pip install xpk') from None
        except subprocess.CalledProcessError:
            refused.append(trial.name)
    if refused:
        raise UserError(f'xpk did not submit {", ".join(refused)}; it says why above')
