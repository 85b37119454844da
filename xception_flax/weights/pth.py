"""Reads PyTorch's files without PyTorch, and without running code from them.

Such a file (`.pth`, `.pt`, `.bin`, `.ckpt`, ...) is a pickle, which may call any function. This
reader allows only those that make tensors and dictionaries. What else training programs save beside
them, such as their arguments, is skipped.
"""

import collections
import io
import math
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


# Where programs keep a state dict in a file, as timm knows them and others write them.
AVERAGED = (
    'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema_model', 'model_ema_state_dict', 'ema',
    'averaged_state_dict', 'swa_model',
)  # fmt: skip
RAW = ('state_dict', 'model_state_dict', 'model', 'net', 'network', 'weights', 'params')


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str, str]:
    """Reads the state dict of a file, which may be in it under one of `AVERAGED` or `RAW`.

    Returns:
      The arrays by name; the name of the network ('arch'), if the file has it, or ''; and if the
      file holds averaged and raw weights, that these are the averaged ones, as timm takes them.

    Raises:
      UserError: the file calls a function that weights do not need.
      Exception: the file is damaged.
    """
    content = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
    if not isinstance(content, dict):
        raise UserError(f'it holds a {type(content).__name__}, not a dictionary of tensors')
    found = {key: value for key in (*AVERAGED, *RAW) if (value := _tensors(content.get(key)))}
    if not found:  # at the top, or in the only dictionary that has any
        found = {'': value} if (value := _tensors(content)) else _dictionaries(content)
        if len(found) != 1:
            raise UserError(f'it has no state dict under a name known here, only {list(content)}')
    key, tensors = next(iter(found.items()))
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
        raise ValueError('its tensors are larger than the file')
    both = key in AVERAGED and any(other in RAW for other in found)
    note = f'averaged weights, {key!r} of {list(content)}' if both else ''
    architecture = content.get('arch')
    architecture = architecture if isinstance(architecture, str) else ''
    return {name: tensor() for name, tensor in tensors.items()}, architecture, note


def _dictionaries(content: dict[str, Any]) -> dict[str, dict[str, '_Tensor']]:
    """The dictionaries of tensors in a file, by their keys."""
    return {key: found for key, value in content.items() if (found := _tensors(value))}


def _tensors(content: Any) -> dict[str, '_Tensor']:
    """The tensors of a dictionary, also of one in it that has a state dict's name."""
    if not isinstance(content, dict):
        return {}
    inner = next((content[key] for key in RAW if isinstance(content.get(key), dict)), content)
    return {str(name): value for name, value in inner.items() if isinstance(value, _Tensor)}


class _Tensor:
    """A tensor whose elements are read when it is called."""

    def __init__(self, storage: '_Storage', offset: int, size: tuple, stride: tuple, *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    @property
    def nbytes(self) -> int:
        """Size of the tensor as an array."""
        return math.prod(self.size) * self.storage.dtype.itemsize

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


class _Skipped:
    """In place of what is not needed: it takes anything, and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


# Harmless values that training programs save beside weights, by module and name.
SKIPPED = {
    ('argparse', 'Namespace'), ('torch', 'Size'), ('torch', 'device'), ('torch', 'dtype'),
    ('numpy', 'dtype'), ('numpy', 'ndarray'), ('numpy.core.multiarray', 'scalar'),
    ('numpy._core.multiarray', 'scalar'), ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', '_reconstruct'), ('_codecs', 'encode'),
    ('collections', 'defaultdict'), ('collections', 'Counter'), ('pathlib', 'PosixPath'),
    ('pathlib', 'Path'), ('pathlib', 'WindowsPath'), ('builtins', 'set'),
    ('datetime', 'datetime'), ('datetime', 'timedelta'), ('builtins', 'list'), ('builtins', 'dict'),
    ('builtins', 'int'), ('builtins', 'float'), ('builtins', 'slice'), ('torch', 'strided'),
}  # fmt: skip
DTYPES = (
    'float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool',
)  # fmt: skip


class _Unpickler(pickle._Unpickler):
    """Allows only what makes tensors.

    It is Python's own, since the one in C takes memory as a damaged file tells it to.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[str, np.dtype], _Storage]):
        super().__init__(file, encoding='utf-8')
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = 'builtins' if module == '__builtin__' else module  # of Python 2
        if module == 'torch' and name in STORAGES:
            return name
        if (module, name) in SKIPPED or (module == 'torch' and name in DTYPES):
            return _Skipped
        known = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
            ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
            ('torch._utils', '_rebuild_parameter_with_state'): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise UserError(
                f'it calls {module}.{name}, which weights do not need and which could run any '
                'code; save the state dict alone'
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return self._storage(key, STORAGES[kind])


def _read_zip(path: pathlib.Path) -> Any:
    archive = zipfile.ZipFile(path)
    (pickled,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
    folder = pickled.removesuffix('data.pkl')

    def read(name: str) -> bytes:
        if archive.getinfo(name).file_size > 2 * path.stat().st_size:
            raise ValueError(f'{name} in it is larger than the file')
        return archive.read(name)

    def storage(key: str, dtype: np.dtype) -> _Storage:
        return _Storage(dtype, lambda: read(f'{folder}data/{key}'))

    return _Unpickler(io.BytesIO(read(pickled)), storage).load()


def _read_old(path: pathlib.Path) -> Any:
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
