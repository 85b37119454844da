"""Reads files of Keras 1 to 3 as named arrays, with the configuration that they carry."""

import io
import itertools
import json
import math
import mmap
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from xception_flax.base.errors import UserError
from xception_flax.weights import keras_config
from xception_flax.weights.arrays import Arrays

HEAP = b'GCOL\x01\0\0\0'  # a global heap of HDF5: signature, version, reserved
LARGEST_ATTRIBUTE = 64e6  # bytes; Keras splits lists at 64 kB
CONTAINERS = ('layers', '_layer_checkpoint_dependencies', 'vars')  # groups that are no layers


# Arrays, configuration of the model, how it was compiled; {} where the file does not say.
Content = tuple[Arrays, dict[str, Any], dict[str, Any]]


def read_hdf5(path: pathlib.Path) -> Content:
    """Reads an HDF5 file, `.h5` or `.weights.h5`."""
    with path.open('rb') as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_heaps(content)
    with h5py.File(path, 'r') as file:
        arrays, model = _layers(file, path.stat().st_size), _json(file, 'model_config')
        return _sorted(arrays, model), model, _json(file, 'training_config')


def read_archive(path: pathlib.Path) -> Content:
    """Reads a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        for name in {keras_config.CONFIG, keras_config.WEIGHTS} & sizes.keys():
            if sizes[name] > 2 * path.stat().st_size:
                raise UserError(f'{name} in it says that it unpacks to {sizes[name]:,} bytes')
        config = (
            json.loads(archive.read(keras_config.CONFIG)) if keras_config.CONFIG in sizes else {}
        )
        content = io.BytesIO(archive.read(keras_config.WEIGHTS))
    _check_heaps(content.getvalue())
    with h5py.File(content, 'r') as file:
        size = sizes[keras_config.WEIGHTS]
        return _layers(file, size), config, config.get('compile_config') or {}


def _sorted(arrays: Arrays, model: dict[str, Any]) -> Arrays:
    """The arrays in the order of the model: a file has the trainable ones of a nested one first."""
    try:
        layers = [layer['config'].get('name') for layer in keras_config.flatten(model)]
    except (AttributeError, LookupError, RecursionError, TypeError):
        return arrays  # without a configuration, or with a damaged one
    places = {name: place for place, name in enumerate(layers)}
    order = sorted(arrays, key=lambda name: places.get(name.rpartition('/')[0], len(places)))
    return {name: arrays[name] for name in order}


def _check_heaps(content: bytes | mmap.mmap) -> None:
    """Refuses what libhdf5 1.14.6 reads for ever: free space without a size in a global heap."""
    start = content.find(HEAP)
    while start >= 0:
        end = min(len(content), start + int.from_bytes(content[start + 8 : start + 16], 'little'))
        at = start + 16
        while at + 16 <= end:
            number = int.from_bytes(content[at : at + 2], 'little')
            size = int.from_bytes(content[at + 8 : at + 16], 'little')
            if number == size == 0:
                raise UserError('its heap of strings is damaged')
            at += 16 + (size + 7) // 8 * 8 if number else size
        start = content.find(HEAP, start + 1)


def _json(file: h5py.File, key: str) -> dict[str, Any]:
    return json.loads(_attribute(file, key)) if key in file.attrs else {}


def _attribute(group: h5py.Group, key: str) -> Any:
    """An attribute, unless a damaged file says that it is enormous."""
    found = group.attrs.get_id(key)
    if math.prod(found.shape) * found.dtype.itemsize > LARGEST_ATTRIBUTE:
        raise UserError(f'the attribute {key!r} in it has the shape {found.shape}')
    return group.attrs[key]


def _layers(file: h5py.File, size: int) -> Arrays:
    """The arrays of a file of `size` bytes."""
    arrays: Arrays = {}
    reader = _Reader(size)
    groups = file.get('model_weights', file)
    legacy = any(key.startswith('layer_names') for key in groups.attrs)
    layers = _legacy(groups, reader) if legacy else _keras3(file, reader)
    for layer, values in layers:
        if not values:
            continue
        roles = _roles(values)
        for role, value in zip(roles, values, strict=True):
            if f'{layer}/{role}' in arrays:
                raise UserError(f'there are two layers named {layer!r} in it')
            arrays[f'{layer}/{role}'] = value
    return arrays


class _Reader:
    """Reads arrays, which together may not be larger than twice the file that holds them."""

    def __init__(self, size: int):
        self._left = 2 * size

    def __call__(self, group: h5py.Group, name: str) -> np.ndarray:
        dataset = group[name]
        elsewhere = dataset.external or dataset.is_virtual or dataset.file != group.file
        self._left -= dataset.nbytes
        if elsewhere or self._left < 0:
            what = 'lies in another file' if elsewhere else 'is larger than the file'
            raise UserError(f'the array {dataset.name} in it {what}')
        return np.asarray(dataset)


def _legacy(groups: h5py.Group, read: _Reader) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Layers in the format of Keras 1 and 2, where array names vary, but not their order."""
    for name in _strings(groups, 'layer_names'):
        group = groups[name]
        names = _strings(group, 'weight_names')
        owners = [n.split('/')[-2] if '/' in n else name for n in names]
        if len(set(owners)) == 1:  # a layer, not a model
            owners = [name] * len(names)
        for owner in dict.fromkeys(owners):
            own = [n for n, o in zip(names, owners, strict=True) if o == owner]
            yield owner, [read(group, n) for n in own]


def _strings(group: h5py.Group, key: str) -> list[str]:
    """The strings of an attribute; long lists are split into key0, key1, ..."""
    split = itertools.takewhile(
        lambda k: k in group.attrs, (f'{key}{i}' for i in itertools.count())
    )
    keys = [key, *split] if key in group.attrs else [*split]
    parts = [_attribute(group, k) for k in keys]
    return [s.decode() if isinstance(s, bytes) else str(s) for part in parts for s in part]


def _keras3(file: h5py.File, read: _Reader) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Layers in the format of Keras 3: groups of numbered arrays.

    A group has the name of its layer's class, and the layer's number among those of that class,
    such as 'conv2d_7', in the order of the model. Newer files also have the layer's own name.
    """
    found: dict[str, h5py.Group] = {}

    def visit(path: str, group: h5py.Group | h5py.Dataset) -> None:
        others = path.startswith('optimizer') or 'seed_generator' in path
        if path.endswith('vars') and not others and len(group):
            found[path] = group

    file.visititems(visit)
    for path in sorted(found, key=_position):
        group = found[path]
        name = group.attrs.get('name')
        if name is None:
            name = '/'.join(part for part in path.split('/') if part not in CONTAINERS)
        yield str(name), [read(group, str(i)) for i in range(len(group))]


def _position(path: str) -> tuple[int, list[tuple[str, int]]]:
    """What sorts layers by their order: 'conv2d_10' after 'conv2d_9', a trunk before its head."""
    parts = [re.fullmatch(r'(.*?)_?(\d*)', part) for part in path.split('/')]
    return -len(parts), [(part[1], int(part[2] or 0)) for part in parts if part]


# The roles of a layer's arrays, by their ranks; the order of arrays is fixed in Keras.
_ROLES = {
    (1, 1, 1, 1): ('scale', 'bias', 'mean', 'var'),
    (1, 1, 1): ('bias', 'mean', 'var'),
    (4,): ('kernel',),
    (4, 1): ('kernel', 'bias'),
    (2,): ('kernel',),
    (2, 1): ('kernel', 'bias'),
    (4, 4): ('depthwise', 'pointwise'),
}


def _roles(values: Sequence[np.ndarray]) -> Sequence[str]:
    """The role of each array of a layer; its number, if we have no such layer."""
    return _ROLES.get(tuple(value.ndim for value in values), [str(i) for i in range(len(values))])
