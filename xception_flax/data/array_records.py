"""Writes a source as ArrayRecord files with the description that TFDS gives a data set.

They are read by the sources 'imagenet' and 'tfds', and by TFDS itself.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tqdm import tqdm

from xception_flax.base import extras, locks
from xception_flax.base.errors import UserError
from xception_flax.data.sources.base import Source, check_label
from xception_flax.data.sources.folder import FolderSource

SHARD = 1250  # records: of ImageNet 140 MB, in as many files as TFDS makes
VERSION = '1.0.0'
MOST_UNREADABLE = 0.01  # of a split's images
NAME = re.compile('[a-z][a-z0-9_]*')  # as TFDS wants it


class Labelled(Source, Protocol):
    """A source that knows all its labels, -1 where there is none."""

    @property
    def labels(self) -> Any:
        """The class of each record: a sequence of integers."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What a split has become.

    Attributes:
      lengths: number of records of each file.
      size: in bytes, of all files.
      unreadable: images that could not be read, with the reason.
    """

    lengths: list[int]
    size: int
    unreadable: list[str]


def write(splits: Mapping[str, Labelled], target: pathlib.Path, name: str) -> dict[str, Written]:
    """Writes what is not there yet, and TFDS's description of the whole.

    Args:
      splits: the sources, by split.
      target: where the files go.
      name: name of the data set.

    Raises:
      UserError: the folder holds files of other images, the name cannot be one, too many images
        cannot be read, or another program writes there.
    """
    if not NAME.fullmatch(name):
        raise UserError(f'--name={name}: a name has small letters, digits and _, a letter first')
    target.mkdir(parents=True, exist_ok=True)
    others = {path.stem for path in target.glob('*.json')} - {*splits, 'dataset_info', 'features'}
    if others:
        raise UserError(f'{target} holds {", ".join(sorted(others))}, too; give another folder')
    with locks.lock(target / '.lock') as free:
        if not free:
            raise UserError(f'another program writes to {target}')
        written = {s: _Split(one, target, name, s).write() for s, one in splits.items()}
        _describe(target, name, written, splits)
    return written


class _Split:
    """The files of one split, and a note of what they hold."""

    def __init__(self, source: Labelled, target: pathlib.Path, name: str, split: str):
        self.source, self.note = source, target / f'{split}.json'
        count = -(-len(source) // SHARD)
        shards = (f'{i:05}-of-{count:05}' for i in range(count))
        self.files = [target / f'{name}-{split}.array_record-{shard}' for shard in shards]
        self.noted: dict[str, Any] = {'source': _digest(source), 'files': {}}
        if self.note.exists():
            try:
                found = json.loads(self.note.read_text())
                same = found['source'] == self.noted['source']
                self.noted['files'] = dict(found['files'])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f'{self.note} is damaged: delete {target}') from error
            if not same:
                raise UserError(f'{target} holds {split} of other images; give another folder')

    def write(self) -> Written:
        """Writes the files that are not as the note has them, or lack images."""
        lengths, size, unreadable = [], 0, []
        total, title = len(self.source), self.note.stem
        with tqdm(total=total, desc=title, unit='image', disable=None, dynamic_ncols=True) as bar:
            for number, file in enumerate(self.files):
                chosen = range(number * SHARD, min((number + 1) * SHARD, total))
                noted = self.noted['files'].get(file.name)
                if not noted or noted['unreadable'] or noted['digest'] != _file_digest(file):
                    noted = self._write_file(file, chosen)
                bar.update(len(chosen))
                lengths.append(noted['records'])
                size += file.stat().st_size
                unreadable += noted['unreadable']
        if len(unreadable) > MOST_UNREADABLE * total:
            raise UserError(
                f'{len(unreadable):,} of {total:,} images of {title} cannot be read, such as '
                f'{unreadable[0]}'
            )
        return Written(lengths, size, unreadable)

    def _write_file(self, file: pathlib.Path, chosen: range) -> dict[str, Any]:
        unreadable: list[str] = []
        partial = file.with_name(f'{file.name}.partial')
        records = _write_records(partial, _examples(self.source, chosen, unreadable))
        noted = {'records': records, 'digest': _file_digest(partial), 'unreadable': unreadable}
        partial.rename(file)
        self.noted['files'][file.name] = noted
        partial = self.note.with_name(f'{self.note.name}.partial')
        partial.write_text(json.dumps(self.noted))
        partial.rename(self.note)
        return noted


def _digest(source: Labelled) -> str:
    """Stands for the images' names and classes, and for sizes and times where they are files."""
    found = hashlib.sha256(json.dumps(list(source.class_names)).encode())
    for index in range(len(source)):
        facts = [source.name(index).rpartition('/')[2], int(source.labels[index])]
        if isinstance(source, FolderSource):
            with contextlib.suppress(OSError):
                stat = os.stat(f'{source.root}/{source.files[index]}')
                facts += [stat.st_size, stat.st_mtime_ns]
        found.update(json.dumps(facts).encode())
    return found.hexdigest()


def _file_digest(file: pathlib.Path) -> str:
    """The digest of a file's bytes; '' if there is no file."""
    if not file.exists():
        return ''
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, 'blake2b').hexdigest()


def _examples(source: Labelled, chosen: range, unreadable: list[str]) -> Iterator[bytes]:
    with extras.needed('tfds', 'preparing a data set'):
        from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2  # slow to import

    def values(*found: bytes) -> tf_feature_pb2.Feature:
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=found))

    for index in chosen:
        name = source.name(index)
        try:
            record = source[index]
            if record['label'] == -1:
                raise OSError('it has no class')
        except OSError as error:
            unreadable.append(f'{name}: {error}')
            continue
        check_label(source, index, record)
        label = tf_feature_pb2.Int64List(value=[record['label']])
        feature = {
            'image': values(bytes(record['image'])),
            'label': tf_feature_pb2.Feature(int64_list=label),
            'file_name': values(name.rpartition('/')[2].encode(errors='replace')),
        }
        features = tf_feature_pb2.Features(feature=feature)
        example = tf_example_pb2.Example(features=features)
        yield example.SerializeToString(deterministic=True)


def _write_records(file: pathlib.Path, examples: Iterator[bytes]) -> int:
    """Writes an ArrayRecord, and reads it again; gives the number of records."""
    from array_record.python import array_record_module  # not on Windows

    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
    digests = []
    for example in examples:
        writer.write(example)
        digests.append(hashlib.blake2b(example).digest())
    writer.close()
    reader = array_record_module.ArrayRecordReader(str(file))
    read = (reader.read([number])[0] for number in range(reader.num_records()))
    if [hashlib.blake2b(record).digest() for record in read] != digests:
        raise UserError(f'{file} reads differently than it was written')
    reader.close()
    with file.open('rb') as written:
        os.fsync(written.fileno())
    return len(digests)


def _describe(
    target: pathlib.Path,
    name: str,
    written: Mapping[str, Written],
    splits: Mapping[str, Labelled],
) -> None:
    """Writes TFDS's description of the data set: what its features and splits are."""
    with extras.needed('tfds', 'preparing a data set'):
        import tensorflow_datasets as tfds  # slow to import

    names = list(next(iter(splits.values())).class_names) or None
    count = None if names else max(source.num_classes for source in splits.values())
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features=tfds.features.FeaturesDict(
            {
                'image': tfds.features.Image(),
                'label': tfds.features.ClassLabel(num_classes=count, names=names),
                'file_name': tfds.features.Text(),
            }
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=one.lengths,
                num_bytes=one.size,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=target,
                    dataset_name=name,
                    split=split,
                    filetype_suffix='array_record',
                ),
            )
            for split, one in written.items()
        ],
        filename_template=None,
        check_data=False,
    )
