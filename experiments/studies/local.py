"""Trains runs on this machine, one process at a time."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO

from tqdm import tqdm

from experiments.studies.settings import ROOT
from experiments.studies.trials import Trial
from xception_flax.base import locks, paths, signals
from xception_flax.base.errors import UserError
from xception_flax.runtime.progress import duration

LOOK = 1.0  # seconds between two looks at a run's progress; in a bucket each takes requests
LOOK_IN_BUCKET = 15.0
STARTS = 3  # starts without progress after which a run that asks for another one has failed


class Sweep:
    """Trains several runs; when one fails, it continues with the next.

    Attributes:
      failed: reason of failure, by name of the run.
      elsewhere: names of runs that other processes are training.
    """

    def __init__(self, trials: list[Trial]):
        """Prepares for `trials`."""
        self.trials = trials
        self.failed: dict[str, str] = {}
        self.elsewhere: list[str] = []
        self._signal = ''  # name of the signal that came
        self._process: subprocess.Popen | None = None
        self._fractions: dict[str, float] = {}  # what is done, by name of the run

    def go(self) -> None:
        """Trains all runs that are not done.

        Raises:
          UserError: runs have failed.
          Stopped: a signal came, or other processes are training runs that are not done.
        """
        count = len(self.trials)
        with self._signals_passed_on(), contextlib.closing(_Progress(count)) as progress:
            for trial in self.trials:
                self._fractions = {t.name: t.standing().fraction for t in self.trials}
                progress.show(trial.name, self._finished)
                with hold(trial) as free:
                    if trial.standing().done:
                        continue
                    if free:
                        self._train(trial, progress)
                    else:
                        self.elsewhere.append(trial.name)
                if self._signal:
                    raise signals.Stopped(
                        f'stopped by {self._signal} in {trial.name}; the same command resumes it'
                    )
        if self.failed:
            lines = ''.join(f'\n  {name}: {why}' for name, why in self.failed.items())
            raise UserError(f'{len(self.failed)} of {count} runs failed:{lines}')
        if self.elsewhere:
            raise signals.Stopped(
                f'other processes are training {", ".join(self.elsewhere)}; '
                'if they leave a run unfinished, the same command resumes it'
            )
        print('all runs are done', flush=True)

    @property
    def _finished(self) -> float:
        """Number of finished runs, with the fractions of the others."""
        return sum(1 if name in self.failed else done for name, done in self._fractions.items())

    def _train(self, trial: Trial, progress: '_Progress') -> None:
        began, starts, step = time.monotonic(), 0, trial.standing().step
        status = signals.STATUS
        while status == signals.STATUS and starts < STARTS and not self._signal:
            status = self._start(trial, progress)
            reached = trial.standing().step
            starts, step = (0 if reached > step else starts + 1), reached
        if self._signal:
            return
        if status == 0:
            progress.say(f'{trial.name} is done, after {duration(time.monotonic() - began)}')
        else:
            self.failed[trial.name] = f'status {status}, {last_line(trial)} ({trial.log})'
            progress.say(f'{trial.name} failed: {self.failed[trial.name]}')

    def _start(self, trial: Trial, progress: '_Progress') -> int:
        """Starts the run and waits for its end; returns its status."""
        progress.say(f'{trial.name}: {trial.standing()}')
        look = LOOK_IN_BUCKET if paths.in_bucket(trial.workdir) else LOOK
        with _appending(trial.log) as log:
            self._process = subprocess.Popen(
                [*trial.command, '--processes=1'],  # also where several sweeps are tasks of a job
                cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,  # a Ctrl-C reaches it once only: from here
            )  # fmt: skip
        if self._signal:  # it came before there was a process
            self._process.terminate()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(look)
            self._fractions[trial.name] = trial.standing().fraction
            progress.show(trial.name, self._finished)

    @contextlib.contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def pass_on(number: int, _: FrameType | None) -> None:
            self._signal = signal.Signals(number).name
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in signals.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _appending(log: paths.Path) -> Iterator[IO[bytes]]:
    """A file for what a process prints; a log in a bucket gets it at the end."""
    if not paths.in_bucket(log):
        with log.open('ab') as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        before = log.read_bytes() if log.exists() else b''
        paths.write(log, before + file.read())


@contextlib.contextmanager
def hold(trial: Trial) -> Iterator[bool]:
    """Keeps other sweeps off a run inside the context; gives whether the run was free.

    The run itself locks its folder only some seconds after its start.
    """
    trial.workdir.mkdir(parents=True, exist_ok=True)
    with locks.lock(trial.workdir / '.sweep.lock') as lock:
        yield lock is not None and not in_use(trial)


def in_use(trial: Trial) -> bool:
    """Whether a training uses the run's folder."""
    if not trial.workdir.exists():
        return False
    with locks.lock(trial.workdir / '.lock') as lock:  # that of `workdirs.claim`
        return lock is None


def last_line(trial: Trial) -> str:
    """The last line that the run has printed."""
    lines = trial.log.read_text(errors='replace').split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), 'no output')


class _Progress:
    """Shows the progress of all runs: a bar on a terminal, lines elsewhere."""

    def __init__(self, runs: int):
        self.runs = runs
        self._began: tuple[float, float] | None = None  # time, and number of runs finished then
        self._left = ''
        self._bar = None
        if sys.stderr.isatty():
            layout = '{l_bar}{bar}| {n:.2f}/{total} runs [{elapsed}{postfix}]'
            self._bar = tqdm(total=runs, dynamic_ncols=True, bar_format=layout)

    def show(self, name: str, finished: float) -> None:
        """Shows the number of finished runs, with fractions, and the name of the current one."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, finished
        since, gained = now - self._began[0], finished - self._began[1]
        left = (self.runs - finished) * since / gained if gained > 0 else None
        self._left = f', about {duration(left)} left' if left is not None else ''
        if self._bar is not None:
            self._bar.n = finished
            self._bar.set_postfix_str(name + self._left)

    def say(self, text: str) -> None:
        """Prints a line."""
        tqdm.write(f'{text}{self._left}', file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
