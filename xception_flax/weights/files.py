"""Reads weights files of Keras and PyTorch as named arrays, and executes nothing in them."""

import io
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
import safetensors.numpy

from xception_flax.base.errors import UserError
from xception_flax.weights import pth
from xception_flax.weights.arrays import Arrays

SUFFIXES = ('.weights.h5', '.h5', '.keras', '.safetensors', '.pth')


def read(path: pathlib.Path) -> tuple[str, Arrays]:
    """Reads a weights file.

    Args:
      path: a file of Keras (`.h5`, `.weights.h5`, `.keras`) or PyTorch (`.safetensors`, `.pth`).

    Returns:
      'keras' or 'timm', and the arrays by name. Names of Keras are layer and role, such as
      'block1_conv1/kernel' or 'block2_sepconv1/depthwise', in all formats; names of PyTorch are
      kept.

    Raises:
      UserError: there is no such file, or it is damaged or of another kind.
    """
    if not path.is_file():
        raise UserError(f'there is no weights file {path}')
    readers = {
        '.h5': lambda: _layers(_open(path)),
        '.keras': lambda: _layers(_inside(path)),
        '.safetensors': lambda: safetensors.numpy.load_file(path),
        '.pth': lambda: pth.read(path),
    }
    if path.suffix not in readers:
        raise UserError(f'{path} is no known weights file; give one that ends in {SUFFIXES}')
    try:
        arrays = readers[path.suffix]()
    except UserError:
        raise
    except Exception as error:  # h5py, zipfile and safetensors raise many types
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} is damaged, or no {path.suffix} file ({type(error).__name__}: {reason})'
        ) from error
    if not arrays:
        raise UserError(f'{path} holds no weights')
    return 'keras' if path.suffix in ('.h5', '.keras') else 'timm', arrays


def _open(path: pathlib.Path) -> h5py.File:
    return h5py.File(path, 'r')


def _inside(path: pathlib.Path) -> h5py.File:
    with zipfile.ZipFile(path) as archive:
        return h5py.File(io.BytesIO(archive.read('model.weights.h5')), 'r')


def _layers(file: h5py.File) -> Arrays:
    """The arrays of a Keras file by layer and role; a nested model counts as its layers."""
    arrays: Arrays = {}
    with file:
        groups = file.get('model_weights', file)
        legacy = any(key.startswith('layer_names') for key in groups.attrs)
        layers = _legacy(groups) if legacy else _keras3(file)
        for layer, values in layers:
            if not values:
                continue
            roles = _roles(layer, [value.shape for value in values])
            for role, value in zip(roles, values, strict=True):
                if f'{layer}/{role}' in arrays:
                    raise UserError(f'{file.filename}: there are two layers named {layer!r}')
                arrays[f'{layer}/{role}'] = value
    return arrays


def _legacy(groups: h5py.Group) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Layers in the format of Keras 1 and 2, where array names vary, but not their order."""
    for name in _strings(groups, 'layer_names'):
        group = groups[name]
        names = _strings(group, 'weight_names')
        owners = [n.split('/')[-2] if '/' in n else name for n in names]
        if len(set(owners)) == 1:  # a layer, not a model
            owners = [name] * len(names)
        for owner in dict.fromkeys(owners):
            own = [n for n, o in zip(names, owners, strict=True) if o == owner]
            yield owner, [np.asarray(group[n]) for n in own]


def _strings(group: h5py.Group, key: str) -> list[str]:
    """The strings of an attribute; long lists are split into key0, key1, ..."""
    parts = [group.attrs[k] for k in (key, *(f'{key}{i}' for i in range(1000))) if k in group.attrs]
    return [s.decode() if isinstance(s, bytes) else str(s) for part in parts for s in part]


def _keras3(file: h5py.File) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Layers in the format of Keras 3: groups of numbered arrays with the name of the layer."""
    found: list[tuple[str, list[np.ndarray]]] = []

    def visit(path: str, group: h5py.Group | h5py.Dataset) -> None:
        ours = path.endswith('vars') and not path.startswith('optimizer')
        if ours and len(group):
            name = group.attrs.get('name')
            if name is None:
                raise UserError(f'{file.filename}: {path} has no name; save it in a newer Keras 3')
            found.append((str(name), [np.asarray(group[str(i)]) for i in range(len(group))]))

    file.visititems(visit)
    yield from found


def _roles(layer: str, shapes: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """The role of each array of a layer, by number and ranks; their order is fixed in Keras."""
    ranks = tuple(len(shape) for shape in shapes)
    known = {
        (1, 1, 1, 1): ('scale', 'bias', 'mean', 'var'),
        (1, 1, 1): ('bias', 'mean', 'var'),
        (4,): ('kernel',),
        (4, 1): ('kernel', 'bias'),
        (2, 1): ('kernel', 'bias'),
        (4, 4): ('depthwise', 'pointwise'),
    }
    if ranks not in known:
        raise UserError(
            f'the layer {layer!r} holds arrays of {list(shapes)}, unlike any layer here'
        )
    return known[ranks]
