"""A server of buckets for tests, and a proxy that hinders its clients."""

import atexit
import functools
import http.client
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable

import pytest

from experiments.faults.store import WRAPPER, Server, environment

needs_server = pytest.mark.skipif(
    importlib.util.find_spec(WRAPPER) is None, reason=f'{WRAPPER} is not installed'
)


@functools.cache
def server() -> Server:
    """The server of this process; the libraries of buckets remember it."""
    root = pathlib.Path(tempfile.mkdtemp())
    started = Server(root)
    os.environ.update(environment(started.port))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(started.stop)
    return started


def new_bucket() -> str:
    """The address of a new bucket."""
    return server().make(f'bucket-{uuid.uuid4().hex[:8]}')


def stored(address: str) -> pathlib.Path:
    """Where the server keeps an object, or what is below a folder."""
    return server().root / address.removeprefix('gs://')


class Proxy:
    """Stands before the server, and answers some requests itself.

    Attributes:
      port: the proxy's.
      requests: method and path of each request so far.
    """

    def __init__(self, answer: Callable[[str, str], tuple[int, str] | None], seconds: float = 0):
        """Starts it.

        Args:
          answer: called with the method and the path of a request; gives the status and the text of
            an error, or None to pass the request on.
          seconds: how long each answer takes.
        """
        self.requests: list[tuple[str, str]] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
                proxy.requests.append((self.command, self.path))
                time.sleep(seconds)
                error = answer(self.command, self.path)
                if error:
                    status, text = error
                    content = json.dumps({'error': {'code': status, 'message': text}}).encode()
                    headers = [('Content-Type', 'application/json')]
                else:
                    status, headers, content = _pass_on(self, body)
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ('transfer-encoding', 'content-length', 'connection'):
                        self.send_header(name, value)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                if self.command != 'HEAD':
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_one  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._http = _QuietServer(('127.0.0.1', 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes programs use it."""
        return environment(self.port)

    def __enter__(self) -> 'Proxy':
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that are killed leave their connections."""


def _pass_on(
    request: http.server.BaseHTTPRequestHandler, body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection('127.0.0.1', server().port, timeout=60)
    connection.request(request.command, request.path, body, dict(request.headers))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.getheaders(), content
