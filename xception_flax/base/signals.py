"""SIGTERM and SIGINT as requests to save the work and stop."""

import os
import signal
import socket
import sys
import threading
from typing import Any

# Exit status of a program that was stopped and can be started again (EX_TEMPFAIL of sysexits).
STATUS = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal stopped the run; its work is saved."""


class StopSignals:
    """While entered, the first SIGTERM or SIGINT sets `requested`; the second ends the process.

    A thread listens, so a second signal also works while the main thread compiles or waits for a
    device. Outside the main thread, where Python cannot handle signals, entering does nothing.

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
            # The handlers do nothing; with them Python writes the number of a signal to the socket.
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
