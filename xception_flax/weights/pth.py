"""Reads PyTorch's `.pth` files without PyTorch, and without running code from them.

A `.pth` file is a pickle, which may call any function. This reader allows only those that make
tensors and ordered dictionaries.
"""

import collections
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from xception_flax.base.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6

STORAGES = {
    'DoubleStorage': np.dtype(np.float64),
    'FloatStorage': np.dtype(np.float32),
    'HalfStorage': np.dtype(np.float16),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype(np.int64),
    'IntStorage': np.dtype(np.int32),
    'ShortStorage': np.dtype(np.int16),
    'CharStorage': np.dtype(np.int8),
    'ByteStorage': np.dtype(np.uint8),
    'BoolStorage': np.dtype(np.bool_),
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict, which may be under 'state_dict' or 'model' in the file.

    Raises:
      UserError: the file calls a function that tensors do not need.
      Exception: the file is damaged.
    """
    content = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {name: value() for name, value in content.items() if isinstance(value, _Tensor)}
    return {name.removeprefix('module.'): array for name, array in tensors.items()}


class _Tensor:
    """A tensor whose elements are read when it is called."""

    def __init__(self, storage: '_Storage', offset: int, size: tuple, stride: tuple, *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __call__(self) -> np.ndarray:
        elements = self.storage.elements()
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        inside = 0 <= self.offset <= last < len(elements) and min(self.stride, default=0) >= 0
        if 0 not in self.size and not inside:
            raise ValueError('a tensor reaches beyond its storage')
        step = elements.itemsize
        view = np.lib.stride_tricks.as_strided(
            elements[self.offset :], self.size, [s * step for s in self.stride], writeable=False
        )
        return np.array(view)


class _Storage:
    def __init__(self, dtype: np.dtype, read_bytes: Callable[[], bytes]):
        self.dtype, self.read_bytes = dtype, read_bytes

    def elements(self) -> np.ndarray:
        return np.frombuffer(self.read_bytes(), self.dtype)


class _Unpickler(pickle.Unpickler):
    """Allows only what makes tensors."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, np.dtype], _Storage]):
        super().__init__(file, encoding='utf-8')
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name in STORAGES:
            return name
        known = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
            ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise UserError(
                f'the file calls {module}.{name}, which weights do not need and which could run '
                'any code; save the state dict alone, as .safetensors'
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return self._storage(key, STORAGES[kind])


def _read_zip(path: pathlib.Path) -> dict[str, Any]:
    archive = zipfile.ZipFile(path)
    (pickled,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
    folder = pickled.removesuffix('data.pkl')

    def storage(key: str, dtype: np.dtype) -> _Storage:
        return _Storage(dtype, lambda: archive.read(f'{folder}data/{key}'))

    return _Unpickler(archive.open(pickled), storage).load()


def _read_old(path: pathlib.Path) -> dict[str, Any]:
    """Files from before PyTorch 1.6: pickles one after the other, then the storages."""
    held: dict[str, bytes] = {}
    dtypes: dict[str, np.dtype] = {}

    def storage(key: str, dtype: np.dtype) -> _Storage:
        dtypes[key] = dtype
        return _Storage(dtype, lambda: held[key])

    with path.open('rb') as file:
        if _Unpickler(file, storage).load() != MAGIC:
            raise ValueError('it does not begin as a .pth file does')
        for _ in ('protocol', 'system'):
            _Unpickler(file, storage).load()
        content = _Unpickler(file, storage).load()
        for key in _Unpickler(file, storage).load():
            count = int.from_bytes(file.read(8), 'little')
            size = count * dtypes[key].itemsize
            held[key] = file.read(size)
            if len(held[key]) < size:
                raise ValueError('it ends too early')
    return content
