"""Runs as processes of this machine, one at a time."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType

import filelock
from tqdm import tqdm

from experiments.studies.runs import Run
from experiments.studies.settings import ROOT
from xception_flax.runtime import stopping
from xception_flax.runtime.errors import UserError
from xception_flax.runtime.progress import duration

LOOK = 1.0  # seconds between looks at how far a run is
STARTS = 3  # of a run that asks to be started again without getting any further


class Sweep:
    """Trains several runs, and goes on when one fails.

    Attributes:
      failed: why, by the run's name.
      elsewhere: names of runs that other processes are at work on.
    """

    def __init__(self, runs: list[Run]):
        """Prepares for `runs`."""
        self.runs = runs
        self.failed: dict[str, str] = {}
        self.elsewhere: list[str] = []
        self._signal = ''  # the name of the one that came
        self._process: subprocess.Popen | None = None
        self._shares: dict[str, float] = {}  # what is done of each run

    def go(self) -> None:
        """Trains what is not done.

        Raises:
          UserError: runs have failed.
          Stopped: a signal came, or other processes are at work on what is not done.
        """
        with self._signals_passed_on(), contextlib.closing(_Progress(len(self.runs))) as progress:
            for run in self.runs:
                self._shares = {r.name: r.standing().share for r in self.runs}
                progress.show(run.name, self._finished)
                with hold(run) as free:
                    if run.standing().done:
                        continue
                    if free:
                        self._train(run, progress)
                    else:
                        self.elsewhere.append(run.name)
                if self._signal:
                    raise stopping.Stopped(
                        f'stopped by {self._signal} in {run.name}; the same command goes on'
                    )
        if self.failed:
            lines = ''.join(f'\n  {name}: {why}' for name, why in self.failed.items())
            raise UserError(f'{len(self.failed)} of {len(self.runs)} runs failed:{lines}')
        if self.elsewhere:
            raise stopping.Stopped(
                f'other processes are at work on {", ".join(self.elsewhere)}; '
                'the same command sees to what they leave'
            )
        print('all runs are done', flush=True)

    @property
    def _finished(self) -> float:
        """Number of runs that are finished, with parts of those that are not."""
        return sum(1 if n in self.failed else share for n, share in self._shares.items())

    def _train(self, run: Run, progress: '_Progress') -> None:
        began, starts, step = time.monotonic(), 0, run.standing().step
        status = stopping.STATUS
        while status == stopping.STATUS and starts < STARTS and not self._signal:
            status = self._start(run, progress)
            reached = run.standing().step
            starts, step = (0 if reached > step else starts + 1), reached
        if self._signal:
            return
        if status == 0:
            progress.say(f'{run.name} is done, after {duration(time.monotonic() - began)}')
        else:
            self.failed[run.name] = f'status {status}, {last_line(run)} ({run.log})'
            progress.say(f'{run.name} failed: {self.failed[run.name]}')

    def _start(self, run: Run, progress: '_Progress') -> int:
        """Runs it once; gives its status."""
        progress.say(f'{run.name}: {run.standing()}')
        with run.log.open('a') as log:
            self._process = subprocess.Popen(
                run.command, cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,  # so that it gets a Ctrl-C once: from here
            )  # fmt: skip
        if self._signal:  # it came before there was a process
            self._process.terminate()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(LOOK)
            self._shares[run.name] = run.standing().share
            progress.show(run.name, self._finished)

    @contextlib.contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def pass_on(number: int, _: FrameType | None) -> None:
            self._signal = signal.Signals(number).name
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in stopping.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def hold(run: Run) -> Iterator[bool]:
    """Keeps other sweeps off a run; gives whether it was free.

    The run itself claims its folder only some seconds after its start.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    with _lock(run.workdir / '.sweep.lock') as free:
        yield free and not in_use(run)


def in_use(run: Run) -> bool:
    """Whether a training is at work in the run's folder."""
    if not run.workdir.exists():
        return False
    with _lock(run.workdir / '.lock') as free:  # of `workdirs.claim`
        return not free


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
    """Takes a lock if it is free; gives whether it was."""
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except NotImplementedError:
        pass  # a mount that knows no locks
    try:
        yield True
    finally:
        lock.release()


def last_line(run: Run) -> str:
    """The last line that the run has printed."""
    lines = run.log.read_text(errors='replace').split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), 'without a word')


class _Progress:
    """How far all runs are: a bar on a terminal, lines elsewhere."""

    def __init__(self, runs: int):
        self.runs = runs
        self._began: tuple[float, float] | None = None  # time, and what was finished then
        self._left = ''
        self._bar = None
        if sys.stderr.isatty():
            layout = '{l_bar}{bar}| {n:.2f}/{total} runs [{elapsed}{postfix}]'
            self._bar = tqdm(total=runs, dynamic_ncols=True, bar_format=layout)

    def show(self, name: str, finished: float) -> None:
        """Takes that so many runs are finished, parts counted, and `name` is under way."""
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
