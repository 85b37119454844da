"""gcsfs, the file system of Google Cloud Storage, made to bear outages."""

import io
import logging
import sys
import time
from typing import Any

import aiohttp
import fsspec
import gcsfs.retry

from xception_flax.base.errors import BucketError, described

PATIENCE = 600  # seconds that a bucket may be unreachable
FIRST_PATIENCE = 60  # likewise, before it has ever answered
SILENCE = 60  # seconds after which a request is repeated that gets no answer


class Patient(fsspec.get_filesystem_class('gs')):  # type: ignore[misc]
    """gcsfs, which by itself waits for half a minute, and for a silent server for ever.

    Attributes:
      reached: whether the store has ever answered.
      waiting: whether an outage was reported that has not ended.
    """

    reached = waiting = False

    def _open(self, path: str, mode: str = 'rb', **kwargs: Any) -> Any:
        return _Whole(self, path) if mode == 'wb' else super()._open(path, mode, **kwargs)

    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        while True:
            try:
                found = await super()._request(*args, **kwargs)
                Patient.reached, Patient.waiting = True, False
                return found
            except (FileNotFoundError, FileExistsError):
                Patient.reached = True
                raise
            except Exception as error:
                patience = PATIENCE if Patient.reached else FIRST_PATIENCE
                transient = gcsfs.retry.is_retriable(error)
                if not transient or time.monotonic() - began > patience:
                    raise BucketError(described(error)) from error
                _report(error, patience)


class _Whole(io.BytesIO):
    """A file that is written in one request when it is closed.

    gcsfs begins an upload, to which it then sends the content. An outage between the two can lose
    the upload.
    """

    def __init__(self, system: Patient, path: str):
        super().__init__()
        self._system, self._path = system, path

    def close(self) -> None:
        if self.closed:
            return
        content = self.getvalue()
        super().close()
        self._system.pipe_file(self._path, content, chunksize=len(content) + 1)


def _report(error: Exception, patience: float) -> None:
    """Says once per outage what one waits for."""
    if not Patient.waiting:
        Patient.waiting = True
        text = f'the bucket cannot be reached ({described(error)})'
        print(f'{text}; trying for up to {patience:.0f} s', file=sys.stderr, flush=True)


def register() -> None:
    """Makes it the file system of gs://."""
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # it logs what it raises
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    for name in ('gs', 'gcs'):
        fsspec.register_implementation(name, Patient, clobber=True)
        fsspec.config.conf.setdefault(name, {})['requests_timeout'] = timeout
