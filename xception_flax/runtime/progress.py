"""The progress of a run: a bar on a terminal, lines elsewhere; and the clock."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows and times the progress of training.

    Attributes:
      seconds: time spent in training steps so far, over all starts; evaluation, saving and
        compilation do not count.
      waited: the part of it, in this start, in which the devices waited for data.
      waiting: that part as a fraction of the last interval that `steps_per_second` measured.
    """

    def __init__(self, total: int, visible: bool):
        """Prepares for `total` steps; only one process should be `visible`."""
        self.total, self.visible = total, visible
        self.seconds = self.waited = self.waiting = 0.0
        self._terminal = visible and sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._since: float | None = None
        self._window = (0, 0.0, 0.0)

    def say(self, text: str) -> None:
        """Prints a line."""
        if self.visible:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start(self, step: int) -> None:
        """Starts the clock after a completed step."""
        self._window = (step, self.seconds, self.waited)
        self._since = time.perf_counter()
        if self._terminal:
            self._bar = tqdm(total=self.total, initial=step, unit='step', dynamic_ncols=True)

    def advance(self) -> None:
        """Counts one more step."""
        if self._bar is not None:
            self._bar.update()

    def wait(self, seconds: float) -> None:
        """Counts a time in which the devices waited for data, if the clock runs."""
        if self._since is not None:
            self.waited += seconds

    def steps_per_second(self, step: int) -> float:
        """The speed since the last call, without pauses; 0 before the clock is started."""
        if self._since is None:
            return 0.0
        self._tick()
        now = (step, self.seconds, self.waited)
        steps, seconds, waited = (new - old for new, old in zip(now, self._window, strict=True))
        self._window = now
        seconds = max(seconds, 1e-9)
        self.waiting = min(waited / seconds, 1.0)
        return steps / seconds

    def log(self, step: int, text: str, batch_size: int, speed: float) -> None:
        """Shows metrics of training as text; `speed` is in steps per second, 0 if not known."""
        if speed:
            text += f'  {speed * batch_size:,.0f} images/s'
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            left = f'  {duration((self.total - step) / speed)} left' if speed else ''
            self.say(f'step {step:,}/{self.total:,}  {text}{left}')

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock inside the context, if it runs."""
        self._tick()
        running, self._since = self._since is not None, None
        yield
        self._since = time.perf_counter() if running else None

    def over(self, batches: Iterable[Any], total: int, title: str) -> Iterable[Any]:
        """Iterates over the batches, with a second bar on a terminal."""
        if not self._terminal:
            return batches
        return tqdm(batches, title, total, leave=False, unit='batch', dynamic_ncols=True)

    def close(self) -> None:
        """Ends the bar and the clock."""
        self._tick()
        self._since = None
        if self._bar is not None:
            self._bar.close()

    def _tick(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self.seconds += now - self._since
            self._since = now


def duration(seconds: float) -> str:
    """A duration in its two largest units, such as '2 h 5 min'."""
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, 'd'), (hours, 'h'), (minutes, 'min'), (rest, 's')]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return ' '.join(f'{value} {unit}' for value, unit in parts[:2])
