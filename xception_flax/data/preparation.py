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
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from xception_flax.base.errors import UserError
from xception_flax.data.imagenet_sets import imagenet_classes
from xception_flax.data.sources import folder, imagenet
from xception_flax.data.sources.base import Source, check_label
from xception_flax.data.sources.imagenet import layouts
from xception_flax.data.sources.imagenet.index import is_official, is_wnid
from xception_flax.data.sources.parquet import by_split

SHARD = 1250  # records: of ImageNet 140 MB, in as many files as TFDS makes
VERSION = '1.0.0'


@dataclasses.dataclass(frozen=True)
class Written:
    """What a split has become.

    Attributes:
      lengths: number of records of each file.
      size: in bytes, of all files.
      unreadable: names of images that could not be read, with the reason.
    """

    lengths: list[int]
    size: int
    unreadable: list[str]


def open_splits(config: ConfigDict) -> dict[str, Source]:
    """The splits in `config.dataset.data_dir`.

    Folders of classes are what they are, Parquet files as the hub describes them, and anything
    else is a copy of ImageNet.

    Raises:
      UserError: there are no images, or they cannot be read.
    """
    root = folder.existing(config)
    parquet = sorted(str(path) for path in root.rglob('*.parquet') if path.name[0] != '.')
    if parquet:
        return {split: imagenet.from_parquet(paths) for split, paths in by_split(parquet)}
    found: dict[str, layouts.Layout] = {}
    for split in imagenet.EXAMPLES:
        with contextlib.suppress(layouts.AbsentError):
            found[split] = layouts.find(root, split)
    if any(map(_is_imagenet, found.values())):
        return {split: imagenet.load(config, split) for split in found}
    splits = folder.splits(root)
    if not splits:
        raise UserError(f'{root} has no folders of images, and no Parquet files')
    return dict(splits)


def _is_imagenet(layout: layouts.Layout) -> bool:
    names = () if layout.kind else os.listdir(layout.folder)
    return bool(layout.kind) or any(is_wnid(name) or is_official(name) for name in names)


def title(sources: dict[str, Source], root: pathlib.Path) -> str:
    """A name for the data set: 'imagenet', or that of its folder."""
    source = next(iter(sources.values()))
    if list(source.class_names) == list(imagenet_classes()):
        return 'imagenet'
    return re.sub('[^a-z0-9]+', '_', root.absolute().name.lower()).strip('_') or 'images'


def write(source: Source, target: pathlib.Path, name: str, split: str) -> Written:
    """Writes the files of a split that are not there yet; each is read again and compared.

    Args:
      source: the images.
      target: where the files go.
      name: name of the data set.
      split: name of the split.

    Raises:
      UserError: the folder holds files of other images, or what was written reads differently.
    """
    target.mkdir(parents=True, exist_ok=True)
    _claim(source, target, split)
    count = -(-len(source) // SHARD)
    unreadable: list[str] = []
    files = [target / f'{name}-{split}.array_record-{i:05}-of-{count:05}' for i in range(count)]
    bar = tqdm(total=len(source), desc=split, unit='image', disable=None, dynamic_ncols=True)
    with bar:
        for number, file in enumerate(files):
            chosen = range(number * SHARD, min((number + 1) * SHARD, len(source)))
            if not file.exists():
                _write_file(file, _examples(source, chosen, unreadable))
            bar.update(len(chosen))
    lengths = [_reader(file).num_records() for file in files]
    return Written(lengths, sum(file.stat().st_size for file in files), unreadable)


def describe(target: pathlib.Path, name: str, splits: dict[str, Written], source: Source) -> None:
    """Writes TFDS's description of the data set: what its features and splits are."""
    import tensorflow_datasets as tfds  # slow to import

    names = list(source.class_names) or None
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features=tfds.features.FeaturesDict(
            {
                'image': tfds.features.Image(),
                'label': tfds.features.ClassLabel(
                    num_classes=None if names else source.num_classes, names=names
                ),
                'file_name': tfds.features.Text(),
            }
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=written.lengths,
                num_bytes=written.size,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=target,
                    dataset_name=name,
                    split=split,
                    filetype_suffix='array_record',
                ),
            )
            for split, written in splits.items()
        ],
        filename_template=None,
        check_data=False,
    )


def _claim(source: Source, target: pathlib.Path, split: str) -> None:
    """Notes which images the files are of, or compares with what an earlier start noted."""
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(source.name(index).rpartition('/')[2].encode(errors='surrogateescape') + b'\n')
    now = {'images': len(source), 'names': names.hexdigest()}
    note = target / f'{split}.json'
    if not note.exists():
        note.write_text(json.dumps(now))
    elif json.loads(note.read_text()) != now:
        raise UserError(f'{target} holds {split} of other images; give another folder')


def _examples(source: Source, chosen: range, unreadable: list[str]) -> Iterator[bytes]:
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2  # slow to import

    for index in chosen:
        name = source.name(index)
        try:
            record = source[index]
        except OSError as error:
            unreadable.append(f'{name}: {error}')
            continue
        check_label(source, index, record)
        feature = {
            'image': tf_feature_pb2.Feature(
                bytes_list=tf_feature_pb2.BytesList(value=[record['image']])
            ),
            'label': tf_feature_pb2.Feature(
                int64_list=tf_feature_pb2.Int64List(value=[record['label']])
            ),
            'file_name': tf_feature_pb2.Feature(
                bytes_list=tf_feature_pb2.BytesList(value=[name.rpartition('/')[2].encode()])
            ),
        }
        features = tf_feature_pb2.Features(feature=feature)
        example = tf_example_pb2.Example(features=features)
        yield example.SerializeToString(deterministic=True)


def _write_file(file: pathlib.Path, examples: Iterator[bytes]) -> None:
    from array_record.python import array_record_module  # not on Windows

    partial = file.with_name(f'{file.name}.partial')
    writer = array_record_module.ArrayRecordWriter(str(partial), 'group_size:1')
    digests = []
    for example in examples:
        writer.write(example)
        digests.append(hashlib.blake2b(example).digest())
    writer.close()
    reader = _reader(partial)
    for number, digest in enumerate(digests):
        (record,) = reader.read([number])
        if hashlib.blake2b(record).digest() != digest:
            raise UserError(f'{partial}: record {number} reads differently than it was written')
    if reader.num_records() != len(digests):
        raise UserError(f'{partial} has {reader.num_records()} of {len(digests)} records')
    reader.close()
    with partial.open('rb') as written:
        os.fsync(written.fileno())
    partial.rename(file)


def _reader(file: pathlib.Path) -> Any:
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(str(file))
