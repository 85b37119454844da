"""Published weights: found in the caches of Keras and timm, or downloaded and checked."""

import dataclasses
import functools
import hashlib
import http.server
import pathlib
import threading

import pytest

from xception_flax import models
from xception_flax.base.errors import UserError
from xception_flax.weights import published


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, 'home', lambda: tmp_path / 'home')
    return tmp_path / 'home'


@pytest.fixture
def server(tmp_path):
    """A server of files: its folder and its address."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{running.server_address[1]}'
        running.shutdown()


def published_at(monkeypatch, url, content=b'weights'):
    """Makes 'keras/xception' a file at `url`."""
    folder, _, file = url.rpartition('/')
    entry = dataclasses.replace(
        published.PUBLISHED['keras/xception'], path=file, md5=hashlib.md5(content).hexdigest()
    )
    monkeypatch.setattr(published, 'KERAS', folder)
    monkeypatch.setitem(published.PUBLISHED, 'keras/xception', entry)


def test_weights_are_downloaded_once_and_checked(home, server, monkeypatch):
    folder, address = server
    (folder / 'x.h5').write_bytes(b'weights')
    published_at(monkeypatch, f'{address}/x.h5')
    for _ in range(2):
        path, entry = published.find('keras/xception')
        assert path == home / '.keras/models/x.h5'
        assert path.read_bytes() == b'weights'
        assert entry.network == 'xception'
        (folder / 'x.h5').unlink(missing_ok=True)


def test_a_download_with_another_hash_is_refused(home, server, monkeypatch):
    folder, address = server
    (folder / 'x.h5').write_bytes(b'others')
    published_at(monkeypatch, f'{address}/x.h5')
    with pytest.raises(UserError, match=r'cannot be downloaded .*get http') as error:
        published.find('keras/xception')
    assert '\n' not in str(error.value)
    assert not (home / '.keras/models/x.h5').exists()


def test_without_an_internet_connection_the_error_says_what_to_get(home, monkeypatch):
    published_at(monkeypatch, 'http://127.0.0.1:9/x.h5')
    with pytest.raises(UserError, match=r'get http://127.0.0.1:9/x.h5 and give the path'):
        published.find('keras/xception')


def test_a_damaged_file_in_the_cache_of_keras_is_an_error(home, monkeypatch):
    published_at(monkeypatch, 'http://127.0.0.1:9/x.h5')
    (home / '.keras/models').mkdir(parents=True)
    (home / '.keras/models/x.h5').write_bytes(b'weighs')
    with pytest.raises(UserError, match='its MD5 differs'):
        published.find('keras/xception')


def test_a_file_is_recognised_by_its_name_or_by_a_prefix(tmp_path):
    name = 'xception_weights_tf_dim_ordering_tf_kernels.h5'
    path, entry = published.find(str(tmp_path / name))
    assert (path, entry) == (tmp_path / name, published.PUBLISHED['keras/xception'])
    path, entry = published.find(f'timm/inception_v3.gluon_in1k={tmp_path}/a=b.safetensors')
    assert path == tmp_path / 'a=b.safetensors'
    assert entry.preprocessing == 'torch'
    assert published.find(str(tmp_path / 'mine.h5'))[1] is None


def test_every_entry_has_a_network_and_a_line_in_the_table():
    for name, entry in published.PUBLISHED.items():
        assert entry.network in models.MODELS, name
        assert name in published.table()
    assert published.usual('keras', 'vgg16').preprocessing == 'caffe'
    assert published.usual('timm', 'vgg16').preprocessing == 'torch'
