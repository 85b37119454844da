"""Reads weights files of Keras and PyTorch as named arrays, and executes nothing in them.

What a file is, its content decides, whatever its name.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy

from xception_flax.base import extras
from xception_flax.base.errors import UserError, printable
from xception_flax.weights import keras_config, pth
from xception_flax.weights.arrays import Arrays

READ = 'Keras (.h5, .weights.h5, .keras) and PyTorch (.safetensors, .pth, .bin, .ckpt, ...)'


@dataclasses.dataclass(frozen=True)
class Content:
    """What a weights file holds.

    Attributes:
      library: 'keras' or 'timm', whose names and layouts the arrays have.
      arrays: by name. Names of Keras are layer and role, such as 'block1_conv1/kernel' or
        'block2_sepconv1/depthwise', in the order of the layers; names of PyTorch are kept.
      model: a Keras model's configuration, if the file has it.
      training: how the model was compiled, likewise.
      architecture: the name of the network, as a training program of PyTorch saved it, or ''.
      note: what was chosen among several weights in the file, or ''.
    """

    library: str
    arrays: Arrays
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    architecture: str = ''
    note: str = ''


def read(path: pathlib.Path) -> Content:
    """Reads a weights file of Keras or PyTorch.

    Raises:
      UserError: there is no such file, or it is damaged or of another kind.
    """
    if not path.is_file():
        raise UserError(f'there is no weights file {path}')
    kind, reader = _recognise(path)
    try:
        content = reader(path)
    except UserError as error:
        raise UserError(f'{path} cannot be read: {printable(str(error))}') from error
    except Exception as error:  # h5py, zipfile, pickle and safetensors raise many types
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} is {kind}, but damaged ({type(error).__name__}: {reason})'
        ) from error
    if not content.arrays:
        raise UserError(f'{path} is {kind}, but holds no weights')
    names = {printable(name): array for name, array in content.arrays.items()}
    content = dataclasses.replace(content, arrays=names)
    for name, array in content.arrays.items():
        if not np.can_cast(array.dtype, np.float64, 'same_kind'):
            raise UserError(f'{path} is {kind}, whose array {name!r} is of {array.dtype}')
    return content


def _recognise(path: pathlib.Path) -> tuple[str, Callable[[pathlib.Path], Content]]:
    """What a file is, and its reader."""
    with path.open('rb') as file:
        start = file.read(16)
    if _is_hdf5(path):
        return 'an HDF5 file', _hdf5
    if _is_zip(path):
        members = _members(path)
        if keras_config.WEIGHTS in members:
            return 'a .keras file', _keras
        if any(name.endswith('/data.pkl') for name in members):
            return 'a file of PyTorch', _pytorch
        what = f'a zip archive of {len(members)} files, such as {members[:3]}'
    elif start[8:9] == b'{' and int.from_bytes(start[:8], 'little') < path.stat().st_size:
        return 'a .safetensors file', _safetensors
    elif start[:1] == b'\x80':
        return 'a pickle', _pytorch
    elif not start:
        what = 'empty'
    elif start.startswith((b'PK', b'\x89HDF')):
        what = 'a file that was cut short'
    elif start.startswith(b'version http'):
        what = 'a pointer of Git LFS, not the file itself (git lfs pull gets it)'
    elif start.lstrip()[:1] == b'<':
        what = 'a page of HTML or XML'
    else:
        what = f'a file that begins with {start!r}'
    raise UserError(f'{path} holds no weights: it is {what}. Read are files of {READ}')


def _is_hdf5(path: pathlib.Path) -> bool:
    """Whether HDF5's signature is at 0, 512, 1024, 2048, ..., where its format allows it."""
    offset, size = 0, path.stat().st_size
    with path.open('rb') as file:
        while offset < size:
            file.seek(offset)
            if file.read(8) == b'\x89HDF\r\n\x1a\n':
                return True
            offset = 2 * offset or 512
    return False


def _is_zip(path: pathlib.Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # Python 3.11, where the end is damaged
        return True


def _members(path: pathlib.Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # of many types
        raise UserError(f'{path} is a damaged zip archive') from None


def _hdf5(path: pathlib.Path) -> Content:
    with extras.needed('keras', 'an HDF5 file'):
        from xception_flax.weights import keras_files
    return Content('keras', *keras_files.read_hdf5(path))


def _keras(path: pathlib.Path) -> Content:
    with extras.needed('keras', 'an HDF5 file'):
        from xception_flax.weights import keras_files
    return Content('keras', *keras_files.read_archive(path))


def _safetensors(path: pathlib.Path) -> Content:
    return Content('timm', safetensors.numpy.load_file(path))


def _pytorch(path: pathlib.Path) -> Content:
    arrays, architecture, note = pth.read(path)
    return Content('timm', arrays, architecture=architecture, note=note)
