"""Locks: a file on a disk, a lease in a bucket."""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import filelock

from xception_flax.base import extras
from xception_flax.base.paths import Path, errors, in_bucket

RENEWAL = 5.0  # seconds between two renewals of a lease
LIFETIME = 30.0  # seconds without a renewal after which its owner counts as dead


class Lock:
    """A lock that this process holds."""

    def check(self) -> None:
        """Returns when the lock is certainly held, which only a bucket can delay.

        Raises:
          UserError: the bucket cannot be reached.
        """


@contextlib.contextmanager
def lock(path: Path, timeout: float = 0) -> Iterator[Lock | None]:
    """Holds a lock inside the context, if it is free; gives None if it is not.

    A mount that knows no locks counts as free.

    Args:
      path: the lock's file, or its object in a bucket.
      timeout: seconds to wait for it on a disk; -1 for ever. In a bucket one waits until it is
        clear whether the owner is alive, at most `LIFETIME`.

    Raises:
      UserError: the bucket cannot be written.
    """
    if in_bucket(path):
        lease = Lease(path)
        held = lease.acquire()
        try:
            yield lease if held else None
        finally:
            lease.release()
        return
    file = filelock.FileLock(path, timeout=timeout)
    try:
        file.acquire()
    except filelock.Timeout:
        yield None
        return
    except NotImplementedError:
        pass
    try:
        yield Lock()
    finally:
        file.release()


class Lease(Lock):
    """An object in a bucket that its owner renews, and that others take when it does not.

    The object's generation changes with each write, and each write names the generation that it
    replaces, so of two writers one fails. No clocks are compared: who waits for a lease watches for
    `LIFETIME` whether its generation changes. An owner that has lost it, because its machine was
    frozen, ends at once: whatever it still writes would be in the way of the new one.
    """

    def __init__(self, path: Path):
        """Prepares; nothing is written yet.

        Raises:
          UserError: google-cloud-storage is missing, or there are no credentials.
        """
        with extras.needed('gcs', str(path)):
            from google.api_core import exceptions
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY

            from xception_flax.base.gcs import PATIENCE
        self.path, self._exceptions = path, exceptions
        self._patient = DEFAULT_RETRY.with_timeout(PATIENCE).with_delay(maximum=RENEWAL)
        bucket, _, self._name = os.fspath(path).removeprefix('gs://').partition('/')
        with errors(path):
            self._bucket = storage.Client().bucket(bucket)
        self._me = f'{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}'
        self._generation = 0
        self._renewed = 0.0  # a time on the clock of time.monotonic
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._keep_renewing, daemon=True)

    def acquire(self) -> bool:
        """Takes the lease, after watching that of another owner; gives whether it is ours now.

        Raises:
          UserError: the bucket cannot be written.
        """
        with errors(self.path):
            generation = self._watch()
            if generation is None or not self._write(generation, self._patient):
                return False
        self._renewer.start()
        return True

    def check(self) -> None:
        """Returns when the lease is certainly ours, also after a freeze or an outage."""
        if time.monotonic() - self._renewed > LIFETIME:
            with errors(self.path):
                self._renew(self._patient)

    def release(self) -> None:
        """Gives the lease back, if it is ours."""
        self._ended.set()
        if self._renewer.is_alive():
            self._renewer.join()
        if self._generation:
            with contextlib.suppress(Exception):  # others see that it is not renewed
                blob = self._bucket.blob(self._name)
                blob.delete(if_generation_match=self._generation, timeout=RENEWAL, retry=None)

    def _watch(self) -> int | None:
        """The generation to replace, 0 if there is none; None if its owner is alive."""
        generation, owner = self._read()
        if generation:
            watching = f'{self.path} is locked by {owner}; watching whether that one is alive'
            print(f'{watching}, for {LIFETIME:.0f} s', file=sys.stderr, flush=True)
        since = time.monotonic()
        while generation and time.monotonic() - since < LIFETIME:
            time.sleep(RENEWAL / 5)
            asked = time.monotonic()
            found, _ = self._read()
            if found not in (0, generation):
                return None
            generation = found
            if time.monotonic() - asked > RENEWAL:  # an outage, in which the owner cannot renew it
                since = time.monotonic()
        return generation

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEWAL):
            with contextlib.suppress(Exception):  # again in a moment: nobody takes it in an outage
                self._renew(None)

    def _renew(self, retry: Any) -> None:
        """Renews the lease; ends the process if another has it."""
        with self._writing:
            if not self._write(self._generation, retry):
                owner = self._read()[1] or 'one that has ended'
                _end(
                    f'{self.path} was removed or taken by another process ({owner}), as this one '
                    f'did not renew it for {LIFETIME:.0f} s; this one stops'
                )

    def _write(self, generation: int, retry: Any) -> bool:
        """Replaces one generation of the object, 0 for none; gives whether it was still there."""
        blob, began = self._bucket.blob(self._name), time.monotonic()
        blob.metadata = {'owner': self._me}
        try:
            blob.upload_from_string(
                b'', if_generation_match=generation, timeout=RENEWAL, retry=retry
            )
            self._generation = blob.generation
        except self._exceptions.PreconditionFailed:
            # Our own write may have come through, and only the answer to it not.
            found, owner = self._read()
            if owner != self._me:
                return False
            self._generation = found
        self._renewed = began
        return True

    def _read(self) -> tuple[int, str]:
        """Generation and owner of the object; 0 and '' if there is none."""
        blob = self._bucket.get_blob(self._name, timeout=RENEWAL, retry=self._patient)
        return (blob.generation, (blob.metadata or {}).get('owner', '')) if blob else (0, '')


def _end(message: str) -> None:
    """Ends the process at once, also while other threads write."""
    print(f'\nerror: {message}', file=sys.stderr, flush=True)
    os._exit(1)
