"""Files written by PyTorch itself (data/make.py)."""

import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from xception_flax.base.errors import UserError
from xception_flax.weights import files, pth

DATA = pathlib.Path(__file__).parent / 'data'
TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ('file', 'prefix', 'note'),
    [
        ('new.pth', '', ''),
        ('old.pth', '', ''),
        ('wrapped.pth', 'module.', ''),
        ('training.ckpt', 'module._orig_mod.', "averaged weights, 'state_dict_ema' of ['epoch'"),
    ],
)
def test_tensors_are_read_as_they_were_saved(file, prefix, note):
    tensors, architecture, said = pth.read(DATA / file)
    assert architecture == ('legacy_xception' if file == 'training.ckpt' else '')
    assert said.startswith(note)
    assert bool(said) == bool(note)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    expected = {
        'plain': TABLE,
        'transposed': TABLE.T,
        'part': np.float32([6, 10]),
        'half': np.float16([1.5, -2]),
        'brain': np.array([1.5, -2], ml_dtypes.bfloat16),
        'count': np.int64(7),
        'parameter': np.float32([0.5]),
        'empty': np.zeros((0, 3), np.float32),
    }
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype


def test_raw_weights_of_a_training_are_read_without_a_word():
    tensors, _, note = pth.read(DATA / 'raw.ckpt')
    assert len(tensors) == 8
    assert not any(value.any() for value in tensors.values())
    assert note == ''


def test_several_dictionaries_of_unknown_names_are_named(tmp_path):
    tensors = pickle.dumps({'plain': 1})
    with zipfile.ZipFile(tmp_path / 'x.pt', 'w') as archive:
        archive.writestr('x/data.pkl', tensors)
    with pytest.raises(UserError, match=r"no state dict under a name known here, only \['plain'\]"):
        pth.read(tmp_path / 'x.pt')


def test_an_archive_with_a_damaged_end_is_refused(tmp_path):
    """Python 3.11 raises an error where it is asked whether a file is an archive."""
    data, end = (DATA / 'new.pth').read_bytes(), 22
    several_disks = b'PK\6\7' + bytes(12) + b'\2\0\0\0'
    (tmp_path / 'x.pt').write_bytes(data[:-end] + several_disks + data[-end:])
    with pytest.raises(UserError, match=r'x\.pt is a damaged zip archive'):
        files.read(tmp_path / 'x.pt')


def test_a_whole_module_is_refused():
    with pytest.raises(UserError, match=r'calls torch\.nn\.modules\.linear\.Linear'):
        pth.read(DATA / 'module.pth')


class Command:
    def __reduce__(self):
        return os.system, ('touch harm',)


@pytest.mark.parametrize('zipped', [True, False])
def test_no_code_of_a_file_runs(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'evil.pth'
    payload = pickle.dumps({'state_dict': Command()})
    if zipped:
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('evil/data.pkl', payload)
    else:
        file.write_bytes(pickle.dumps(pth.MAGIC) + pickle.dumps(1001) + pickle.dumps({}) + payload)
    with pytest.raises(UserError, match=r'calls (posix|nt)\.system'):
        pth.read(file)
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('file', ['new.pth', 'old.pth'])
@pytest.mark.parametrize('fraction', [0.0, 0.3, 0.6, 0.95])
def test_a_file_that_ends_too_early_is_an_error(file, fraction, tmp_path):
    data = (DATA / file).read_bytes()
    cut = tmp_path / file
    cut.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(UserError, match=r'damaged|cut short|is empty'):
        files.read(cut)


def test_a_tensor_cannot_reach_beyond_its_storage():
    storage = pth._Storage(np.dtype(np.float32), lambda: bytes(16))
    with pytest.raises(ValueError, match='beyond its storage'):
        pth._Tensor(storage, 0, (5,), (1,))()
    with pytest.raises(ValueError, match='beyond its storage'):
        pth._Tensor(storage, 0, (2,), (-1,))()
