"""Sends the numbers of a run to a tracker: Weights & Biases or trackio."""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pooch

from xception_flax.base import paths
from xception_flax.base.errors import UserError

TRACKERS = ('', 'wandb', 'trackio')  # values of config.tracker
PROJECT = 'xception_flax'
START_SECONDS, FINISH_SECONDS = 30, 60  # that wandb may wait for its server


class Tracker:
    """One run of a tracker, which every start of a training continues.

    Its name is in `tracker.json` in the run's folder, with the last step of which everything is
    sure to be stored: both trackers write in the background, and a start that is killed can lose
    what it has logged. The next start then logs it again from `metrics.jsonl`, as does a start that
    is the first with this tracker. Local files are in `wandb/` or `trackio/` in the run's folder,
    or in the user's cache if it is in a bucket.

    A tracker that fails ends neither the training nor the program: one line says so, and no more
    is sent. Without its server, wandb writes its files for `wandb sync`, and what trackio cannot
    send it keeps, and sends at the next start.

    Of a step that is logged again, also after a resume from an earlier checkpoint, both trackers
    keep all rows, of which the last one is that of `metrics.jsonl`. They differ only if settings
    were changed in between. wandb would drop a step below its own counter, so the steps of its
    charts are the metric 'step'.

    Attributes:
      stored: the last step of which everything is sure to be stored.
    """

    def __init__(
        self,
        package: str,
        workdir: paths.Path,
        config: dict[str, Any],
        step: int,
        say: Callable[[str], None],
    ):
        """Starts the tracker's run, or continues it.

        Args:
          package: 'wandb' or 'trackio'.
          workdir: folder of the run.
          config: all settings.
          step: the step after which the training continues.
          say: prints a line.

        Raises:
          UserError: `tracker.json` is damaged, or the bucket does not take it.
        """
        self._package, self._say = package, say
        self._log: Callable[[dict[str, float], int], None] | None = None
        self._path, self._last = workdir / 'tracker.json', step
        name, stored = _identity(self._path, workdir.name, package)
        self._name, self.stored = name, min(stored, step)
        self._write(self.stored)
        cached = paths.in_bucket(workdir)
        folder = pooch.os_cache('xception_flax') / 'trackers' / name if cached else workdir
        with self._spared():
            folder.mkdir(parents=True, exist_ok=True)
            start = {'wandb': _start_wandb, 'trackio': _start_trackio}[package]
            with _silence():
                self._log, self._finish, where = start(name, folder, config)
            say(f'{package}: {name}, {where}')

    def add(self, values: dict[str, float], step: int) -> None:
        """Logs values by name, such as 'test/averaged/top1'."""
        if self._log:
            with self._spared():
                self._log(values, step)
                self._last = step

    def flush(self) -> None:
        """Does nothing: both trackers write in the background."""

    def close(self) -> None:
        """Ends this start; waits for what is not sent yet, but not for ever."""
        if self._log:
            self._log = None
            with self._spared():
                with _silence():
                    self._finish()
                self._write(self._last)

    def _write(self, stored: int) -> None:
        content = {'run': self._name, 'tracker': self._package, 'stored': stored}
        paths.write(self._path, json.dumps(content) + '\n')

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """Turns an error of the tracker into a line, and ends its use."""
        try:
            yield
        except Exception as error:
            self._log = None
            self._say(
                f'warning: {self._package} has failed ({_line(error)}); nothing is sent to it'
            )


def _identity(path: paths.Path, folder: str, package: str) -> tuple[str, int]:
    """The name of a run and the last step that this tracker has stored.

    A new name is that of the folder and eight random characters.
    """
    with paths.errors(path):
        text = path.read_text() if path.exists() else ''
    if not text:
        label = re.sub(r'[^\w.-]+', '-', folder, flags=re.ASCII)[:64].strip('-')
        return f'{label or "run"}-{uuid.uuid4().hex[:8]}', 0
    try:
        stored = json.loads(text)
        same = stored['tracker'] == package
        return str(stored['run']), int(stored['stored']) if same else 0
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path} is damaged; remove it, and the tracker gets a new run') from None


Started = tuple[Callable[[dict[str, float], int], None], Callable[[], None], str]


def _start_wandb(name: str, folder: pathlib.Path, config: dict[str, Any]) -> Started:
    """Gives how to log, how to finish, and where the run is."""
    import wandb

    def start(**options: Any) -> Any:
        return wandb.init(
            project=os.environ.get('WANDB_PROJECT', PROJECT),
            id=name,
            name=name,
            resume='allow',
            dir=folder,
            config=config,
            allow_val_change=True,
            settings=wandb.Settings(
                console='off',  # it would stand between the progress bar and the terminal
                silent=True,
                init_timeout=START_SECONDS,
                login_timeout=START_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
            **options,
        )

    where = ''
    try:
        run = start()
    except Exception as error:
        where = f'offline ({_line(error)}), '
        wandb.teardown()  # its process keeps the name of the run that has failed
        run = start(mode='offline')
    run.define_metric('*', step_metric='step')

    def log(values: dict[str, float], step: int) -> None:
        run.log({**values, 'step': step}, step=step if step >= run.step else None)

    def finish() -> None:
        run.finish(exit_code=1 if sys.exc_info()[0] else 0)

    sync = f'sent later by: wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*'
    return log, finish, where + sync if run.offline else str(run.url)


def _start_trackio(name: str, folder: pathlib.Path, config: dict[str, Any]) -> Started:
    """Gives how to log, how to finish, and where the run is."""
    os.environ.setdefault('TRACKIO_DIR', str(folder / 'trackio'))  # read by the import
    import trackio

    run = trackio.init(project=PROJECT, name=name, resume='allow', config=config, embed=False)
    where = shlex.quote(str(trackio.utils.TRACKIO_DIR))
    show = f'TRACKIO_DIR={where} trackio show --project {PROJECT}'
    return run.log, trackio.finish, run.url or f'shown by: {show}'


def _silence() -> contextlib.AbstractContextManager[Any]:
    """Hides what a tracker prints about itself."""
    return contextlib.redirect_stdout(io.StringIO())


def _line(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return text[:200] or type(error).__name__
