"""Locks: a file on a disk, a lease in a bucket."""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import filelock

from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.base.paths import Path, errors, in_bucket

RENEWAL = 5.0  # seconds between two renewals of a lease
LIFETIME = 30.0  # seconds without a renewal after which its owner counts as dead


class Lock:
    """A lock that this process holds."""

    def check(self) -> None:
        """Raises a UserError if it was lost, which only happens in a bucket."""


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
    `LIFETIME` whether its generation changes.
    """

    def __init__(self, path: Path):
        """Prepares; nothing is written yet.

        Raises:
          UserError: google-cloud-storage is missing, or there are no credentials.
        """
        with extras.needed('gcs', str(path)):
            from google.api_core import exceptions
            from google.cloud import storage
        self.path, self._exceptions = path, exceptions
        bucket, _, self._name = os.fspath(path).removeprefix('gs://').partition('/')
        with errors(path):
            self._bucket = storage.Client().bucket(bucket)
        self._me = f'{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}'
        self._generation = 0
        self._lost = ''
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def acquire(self) -> bool:
        """Takes the lease, after watching that of another owner; gives whether it is ours now.

        Raises:
          UserError: the bucket cannot be written.
        """
        with errors(self.path):
            generation, owner = self._read()
            if generation:
                watching = f'{self.path} is locked by {owner}; watching whether that one is alive'
                print(f'{watching}, for {LIFETIME:.0f} s', file=sys.stderr, flush=True)
            since = time.monotonic()
            while generation and time.monotonic() - since < LIFETIME:
                time.sleep(RENEWAL / 5)
                now, _ = self._read()
                if now not in (0, generation):
                    return False
                generation = now
            if not self._write(generation):
                return False
        self._renewer.start()
        return True

    def check(self) -> None:
        """Raises a UserError if another process has taken the lease."""
        if self._lost:
            raise UserError(
                f'{self.path} was taken by another process ({self._lost}), as this one did not '
                f'renew it for {LIFETIME:.0f} s; this one stops'
            )

    def release(self) -> None:
        """Gives the lease back, if it is ours."""
        self._ended.set()
        if self._renewer.is_alive():
            self._renewer.join()
        if self._generation and not self._lost:
            with contextlib.suppress(Exception):  # others see that it is not renewed
                blob = self._bucket.blob(self._name)
                blob.delete(if_generation_match=self._generation, timeout=RENEWAL)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            # While the bucket cannot be reached, nobody else can take the lease.
            with contextlib.suppress(Exception):
                if not self._write(self._generation):
                    self._lost = self._read()[1] or 'which has ended'
                    return

    def _write(self, generation: int) -> bool:
        """Replaces one generation of the object, 0 for none; gives whether it was still there."""
        blob = self._bucket.blob(self._name)
        blob.metadata = {'owner': self._me}
        try:
            blob.upload_from_string(b'', if_generation_match=generation, timeout=RENEWAL)
        except self._exceptions.PreconditionFailed:
            # Our own write may have come through, and only the answer to it not.
            found, owner = self._read()
            if owner != self._me:
                return False
            self._generation = found
            return True
        self._generation = blob.generation
        return True

    def _read(self) -> tuple[int, str]:
        """Generation and owner of the object; 0 and '' if there is none."""
        blob = self._bucket.get_blob(self._name, timeout=RENEWAL)
        return (blob.generation, (blob.metadata or {}).get('owner', '')) if blob else (0, '')
