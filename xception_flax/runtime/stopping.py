"""SIGTERM and SIGINT as a wish that a run stop, with its work saved."""

import os
import signal
import socket
import sys
import threading
from typing import Any

# What a program ends with that was stopped and wants to be started again (sysexits' EX_TEMPFAIL).
STATUS = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was stopped by a signal, and what it had done is saved."""


class StopSignals:
    """While entered, the first SIGTERM or SIGINT sets `requested`; the second ends the process.

    A thread listens, so that a second signal works also while the main thread is compiling or
    waiting for a device. Outside the main thread, where Python lets no one handle signals, entering
    does nothing.

    Attributes:
      requested: the name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():
            self._ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            # The handlers do nothing, but with one Python writes the signal's number to the socket.
            self._previous = {s: signal.signal(s, lambda *_: None) for s in SIGNALS}
            self._previous_fd = signal.set_wakeup_fd(theirs.fileno())
            self._theirs = theirs
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous:
            signal.set_wakeup_fd(self._previous_fd)
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._theirs.close()

    def _listen(self) -> None:
        while number := self._ours.recv(1):
            if number[0] not in SIGNALS:
                continue
            name = signal.Signals(number[0]).name
            if self.requested:
                os._exit(128 + number[0])
            self.requested = name
            print(
                f'\n{name}: saving after this step, then stopping; once more stops without saving',
                file=sys.stderr,
                flush=True,
            )
        self._ours.close()
