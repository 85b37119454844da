"""Files that hold many images: where each image lies, and how it is read.

Tars and TFRecords are read in place, by the offset of the image's bytes. The layout of a TFRecord
is that of TensorFlow's record_writer.h, and that of an Example its example.proto.
"""

import itertools
import json
import os
import re
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xception_flax.base.errors import UserError
from xception_flax.base.files import allow_open
from xception_flax.data.decoding import SUFFIXES
from xception_flax.data.imagenet_sets import imagenet_classes

BLOCK = 512  # of a tar
PADDING = 2**20  # bytes of zeros at the end of a tar, at most
CHUNK = 4096  # bytes to read where a few are wanted
RECORDS = 64  # of an ArrayRecord to read at once
# Features of an Example: of TFDS, and of TF-slim, which counts classes from 1.
IMAGES = ('image', 'image/encoded')
NAMES = ('file_name', 'image/filename')
LABELS = {'label': 0, 'image/class/label': 1}
BYTES, INTEGERS = 1, 3  # kinds of a feature


class Entry(NamedTuple):
    """An image in a file.

    Attributes:
      name: its own file's name.
      label: its class; -1 if the file does not tell.
      offset: where its bytes begin; in an ArrayRecord the number of the record; -1 for what is no
        image and is left out.
      size: in bytes; 0 in an ArrayRecord.
    """

    name: str
    label: int
    offset: int
    size: int


def scan_tar(path: str) -> Iterator[Entry]:
    """The images in a tar and in the tars in it.

    The files of one sample have one name and several endings, as in webdataset: KEY.jpg is the
    image, KEY.cls or the "label" of KEY.json its class.

    Raises:
      UserError: the tar is damaged.
    """
    with open(path, 'rb', buffering=0) as file:
        members = _members(file, 0, os.path.getsize(path))
        for key, sample in itertools.groupby(members, lambda member: _key(member.name)):
            images, labels = [], {'cls': -1, 'json': -1}
            for member in sample:
                ending = member.name.rpartition('.')[2].lower()
                if ending in labels and member.isreg():
                    text = os.pread(file.fileno(), member.size, member.offset_data)
                    found = _label(text, ending)
                    if found is None:
                        raise UserError(f'{path}: {member.name} holds no class: {text[:40]!r}')
                    labels[ending] = found
                else:
                    images.append(member)
            label = max(labels.values()) if labels['cls'] < 0 else labels['cls']
            for member in images:
                # In a sample with a class, the image is KEY.jpg, not KEY.mask.jpg.
                of_sample = label < 0 or member.name[len(key) :].lower() in SUFFIXES
                is_image = member.isreg() and member.name.lower().endswith(SUFFIXES)
                if of_sample and is_image and not member.issparse():
                    yield Entry(member.name, label, member.offset_data, member.size)
                else:
                    yield Entry(member.name, -1, -1, 0)


def _members(file: Any, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """What is in the tar between two offsets, and in the tars in it, without folders."""
    file.seek(start)
    try:
        tar = tarfile.TarFile(fileobj=file)
        for member in tar:
            stored = 0 if member.issparse() else member.size  # a sparse one is stored in parts
            if member.size < 0 or member.offset_data + stored > end:
                raise tarfile.ReadError(f'{member.name} has a size of {member.size:,}')
            if member.isreg() and member.name.lower().endswith('.tar'):
                yield from _members(file, member.offset_data, member.offset_data + member.size)
            elif not member.isdir():
                yield member
        rest = os.pread(file.fileno(), PADDING + 1, tar.offset) if tar.offset < end else b''
    except tarfile.TarError as error:
        raise UserError(f'{file.name} is damaged, or no tar: {error}') from error
    # The standard library takes a damaged header for the end, and does not look behind it.
    rest = rest[: end - tar.offset]
    if len(rest) < BLOCK or len(rest) > PADDING or any(rest):
        raise UserError(f'{file.name} is damaged: byte {tar.offset:,} is no header of a file')


def _key(name: str) -> str:
    folder, slash, base = name.rpartition('/')
    return folder + slash + base.partition('.')[0]


def _label(text: bytes, ending: str) -> int | None:
    """The class in a file of a sample, a number or a WordNet id; None if it is neither.

    -1 for JSON without such a 'label', which may hold anything.
    """
    if ending == 'cls':
        found, other = text.decode(errors='replace').strip(), None
    else:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        found, other = values.get('label', -1) if isinstance(values, dict) else values, -1
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    if isinstance(found, str) and re.fullmatch(r'-?\d+', found):
        return int(found)
    return list(imagenet_classes()).index(found) if found in imagenet_classes() else other


def scan_tfrecord(path: str) -> Iterator[Entry]:
    """The images in a TFRecord of Examples.

    Raises:
      UserError: the file is damaged, or holds no images.
    """
    with open(path, 'rb', buffering=0) as file:
        parts, offset, end = _File(file.fileno()), 0, os.path.getsize(path)
        while offset < end:
            (size,) = struct.unpack('<Q', parts[offset : offset + 8].ljust(8, b'\0'))
            if offset + 16 + size > end:
                raise UserError(f'{path} is damaged: it ends within the record at byte {offset:,}')
            yield _entry(path, parts, offset + 12, offset + 12 + size)
            offset += 16 + size


def scan_array_record(path: str) -> Iterator[Entry]:
    """The images in an ArrayRecord of Examples; it has to be read as a whole.

    Raises:
      UserError: the file is damaged, or holds no images.
    """
    reader = _open_array_record(path)
    for start in range(0, reader.num_records(), RECORDS):
        stop = min(start + RECORDS, reader.num_records())
        try:
            records = reader.read(start, stop)
        except (RuntimeError, ValueError) as error:
            raise UserError(f'{path} is damaged: {error}') from error
        for number, record in enumerate(records, start):
            found = _entry(path, record, 0, len(record))
            yield found._replace(offset=number, size=0)


def _open_array_record(path: str) -> Any:
    from array_record.python import array_record_module  # not on Windows

    try:
        return array_record_module.ArrayRecordReader(path)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{path} is damaged, or no ArrayRecord: {error}') from error


class _File:
    """The bytes of a file, by slices; what follows a slice is kept for the next one."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self._start, self._data = 0, b''

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start - self._start, part.stop - self._start
        if start < 0 or stop > len(self._data):
            length = max(part.stop - part.start, CHUNK)
            self._start, self._data = part.start, os.pread(self.descriptor, length, part.start)
            start, stop = 0, part.stop - part.start
        return self._data[start:stop]


def _entry(path: str, parts: Any, start: int, end: int) -> Entry:
    """The image in the Example that lies there; offsets are those of `parts`."""
    name, label, image = '', -1, None
    try:
        for feature, kind, first, last in _features(parts, start, end):
            if feature in NAMES and kind == BYTES:
                name = parts[first:last].decode(errors='surrogateescape')
            elif feature in LABELS:
                if kind != INTEGERS:
                    raise ValueError(f'{feature} is no integer')
                label = _varint(parts, first)[0] - LABELS[feature]
            elif feature in IMAGES and kind == BYTES:
                image = first, last - first
    except (IndexError, ValueError) as error:
        raise UserError(f'{path} is damaged: no Example at byte {start:,} ({error})') from error
    if image is None:
        raise UserError(f'{path} holds an Example without an image: no feature of {IMAGES}')
    return Entry(name, label, *image)


def _features(parts: Any, start: int, end: int) -> Iterator[tuple[str, int, int, int]]:
    """The features of an Example that are not empty: name, kind, and where the first value lies."""
    for _, begin, stop in _fields(parts, start, end):  # features
        for _, *entry in _fields(parts, begin, stop):  # of the map from names to features
            found = {number: place for number, *place in _fields(parts, *entry)}
            if 1 not in found or 2 not in found:
                continue
            for kind, *values in _fields(parts, *found[2]):  # a list of one kind
                first = next(_fields(parts, *values), None)
                # Integers may be packed, into a list that may be empty.
                if first is not None and (kind == BYTES or first[1] < first[2]):
                    yield parts[slice(*found[1])].decode(), kind, *first[1:]


def _fields(parts: Any, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message of protocol buffers: number, and where the value lies."""
    while start < end:
        tag, start = _varint(parts, start)
        stop = start
        if tag & 7 == 0:
            _, stop = _varint(parts, start)
        elif tag & 7 == 2:
            length, start = _varint(parts, start)
            stop = start + length
        else:
            stop = start + {1: 8, 5: 4}.get(tag & 7, end)
        if stop > end:
            raise ValueError('a field is longer than its message')
        yield tag >> 3, start, stop
        start = stop


def _varint(parts: Any, start: int) -> tuple[int, int]:
    """A number, and where the next one begins."""
    value, shift = 0, 0
    for byte in parts[start : start + 10]:
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value - 2**64 * (value >= 2**63), start
        shift += 7
    raise ValueError('no number')


class Parts:
    """Reads parts of files, from any number of threads."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        allow_open(len(paths))
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type['Parts'], tuple[list[str]]]:
        return type(self), (self.paths,)  # another process opens the files itself

    def read(self, file: int, offset: int, size: int) -> bytes:
        """The image at an entry's offset in the file of that number.

        Raises:
          OSError: the file cannot be read.
        """
        data = os.pread(self._opened(file, self._descriptor), size, offset)
        if len(data) < size:
            raise OSError(f'{self.paths[file]} has become shorter')
        return data

    def _opened(self, file: int, how: Callable[[str], Any]) -> Any:
        with self._lock:
            if file not in self._open:
                self._open[file] = how(self.paths[file])
            return self._open[file]

    @staticmethod
    def _descriptor(path: str) -> int:
        return os.open(path, os.O_RDONLY)


class Records(Parts):
    """Reads images of Examples in ArrayRecord files, likewise."""

    def read(self, file: int, offset: int, size: int) -> bytes:
        """The image in the record `offset`.

        Raises:
          OSError: the file cannot be read.
        """
        reader = self._opened(file, _open_array_record)
        try:
            (record,) = reader.read([offset])
        except (RuntimeError, ValueError, IndexError) as error:
            raise OSError(f'{self.paths[file]}: {error}') from error
        found = _entry(self.paths[file], record, 0, len(record))
        return record[found.offset : found.offset + found.size]
