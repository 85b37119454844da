"""Data sets that TFDS has prepared, read as ArrayRecord without TensorFlow."""

import contextlib
import os
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xception_flax.base import extras, paths
from xception_flax.base.errors import UserError
from xception_flax.base.files import allow_open
from xception_flax.data.sources.base import Record, Source

# Features that hold the class or the classes of an image, in order of preference.
LABELS = ('label', 'real_label', 'correct_multi_labels', 'objects_trainable', 'objects')
FILE_NAMES = ('file_name', 'image/filename')
SHARD = re.compile(r'-(\w+)\.\w+-\d+-of-\d+$')  # NAME-SPLIT.array_record-00000-of-01024


class TfdsSource:
    """One split of a prepared data set, with images still encoded.

    A feature that is a sequence of classes gives labels `[C]` of 0 and 1. If classes have a
    confidence, in tenths, those below `confidence` are dropped; in Open Images, confidence 0 marks
    classes that are verified to be absent.
    """

    def __init__(self, title: str, records: Any, features: Any, label: str, confidence: float):
        self.title, self.records, self.label, self.confidence = title, records, label, confidence
        sequence = features[label]
        element = getattr(sequence, 'feature', sequence)
        self.multi_label = element is not sequence
        self.has_confidence = hasattr(element, 'items')  # a dictionary, as in Open Images
        classes = element['label'] if self.has_confidence else element
        self.num_classes, self.class_names = classes.num_classes, classes.names
        self.file_name = next((name for name in FILE_NAMES if name in features), '')

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        found = record[self.label]
        if not self.multi_label:
            return Record(image=record['image'], label=int(found))
        if self.has_confidence:
            confident = np.asarray(found['confidence']) >= 10 * self.confidence
            found = np.asarray(found['label'])[confident]
        label = np.zeros(self.num_classes, np.int32)
        label[np.asarray(found, int)] = 1
        return Record(image=record['image'], label=label)

    def name(self, index: int) -> str:
        """Data set, split and number of the record, and its file name if it has one."""
        file = self.records[index][self.file_name] if self.file_name else b''
        return f'{self.title}[{index}] {file.decode(errors="replace")}'.strip()


class _InBucket:
    """Records whose errors are one line."""

    def __init__(self, records: Any, folder: paths.Path):
        self.records, self.folder = records, folder

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        with paths.errors(self.folder):
            return self.records[index]


def load(config: ConfigDict, split: str) -> Source:
    """Opens a split of the TFDS data set that `config.dataset` describes.

    Raises:
      UserError: the data set is missing, not in ArrayRecord format, or not for classification.
    """
    d = config.dataset
    if not d.name:
        raise UserError(
            "config.dataset.name is not set: give a TFDS data set, such as 'imagenet2012'"
        )
    return open_split(d.name, d.version, d.data_dir, split, d.label, d.confidence)


def open_split(
    name: str, version: str, data_dir: str, split: str, label: str = '', confidence: float = 0.0
) -> Source:
    """Opens a prepared data set.

    Args:
      name: name, with the config if there are several ('imagenet_v2/topimages').
      version: version; '' for the newest that is prepared.
      data_dir: TFDS's folder; '' for $TFDS_DATA_DIR or ~/tensorflow_datasets.
      split: a split in TFDS's language, such as 'train' or 'train[:1%]'.
      label: the feature that holds the classes; '' for the first of `LABELS`.
      confidence: labels below this confidence, 0 to 1, are dropped.

    Raises:
      UserError: the data set is missing, not in ArrayRecord format, or not for classification.
    """
    root = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    folder = _version_folder(paths.folder(root), name, version)
    if paths.in_bucket(folder) and os.fspath(folder).partition('://')[0] != 'gs':
        raise UserError(
            f'{folder}: an ArrayRecord is read on a disk or in gs://; --config.dataset.copy_to=DIR '
            'copies it'
        )

    with extras.needed('tfds', str(folder)):
        import tensorflow_datasets as tfds  # slow to import

    with paths.errors(folder):
        builder = tfds.builder_from_directory(folder)
    if 'array_record' not in {f.value for f in builder.info.available_file_formats()}:
        raise UserError(
            f'{folder} is not in ArrayRecord format; convert it with: tfds convert_format '
            f'--dataset_version_dir={folder} --out_file_format=array_record '
            "(needs TensorFlow: pip install -e '.[prepare]')"
        )
    allow_open(sum(part.num_shards for part in builder.info.splits.values()))
    features = builder.info.features
    known = [name for name in LABELS if name in features]
    if 'image' not in features or not known:
        raise UserError(f'{folder} is no image classification set: it has {sorted(features)}')
    label = label or known[0]
    if label not in known:
        raise UserError(f'config.dataset.label: {folder} has no {label!r} but {known}')
    try:
        records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise UserError(
            f'{folder} has no split {split!r}; choose from {sorted(builder.info.splits)}'
        ) from error
    if paths.in_bucket(folder):
        records = _InBucket(records, folder)
    return TfdsSource(f'{name}/{split}', records, features, label, confidence)


def files(config: ConfigDict, split: str) -> list[paths.File]:
    """The files of a split of the data set that `config.dataset` describes.

    Raises:
      UserError: the data set is missing.
    """
    d = config.dataset
    return files_of(d.name, d.version, d.data_dir, split)


def files_of(name: str, version: str, data_dir: str, split: str) -> list[paths.File]:
    """The files of a prepared data set without the shards of other splits.

    Args:
      name: name, as for `open_split`.
      version: likewise.
      data_dir: TFDS's folder.
      split: a split in TFDS's language; it may name several.

    Raises:
      UserError: the data set is missing.
    """
    folder = _version_folder(paths.folder(data_dir), name, version)
    named = set(re.findall(r'[A-Za-z_]\w*', split))

    def is_needed(file: paths.File) -> bool:
        shard = SHARD.search(file.path)
        return not shard or 'all' in named or shard[1] in named

    return [file for file in paths.files(folder) if is_needed(file)]


def _version_folder(root: paths.Path, name: str, version: str) -> paths.Path:
    """The folder of one version: the named one, or the newest."""
    prepare = (
        f'prepare it with: tfds build {name} --data_dir={root} --file_format=array_record '
        "(needs TensorFlow: pip install -e '.[prepare]')"
    )
    parent = root / name
    found = {p.parent.name for p in _glob(parent, '*/dataset_info.json')}
    if not found:
        configs = {p.parent.parent.name for p in _glob(parent, '*/*/dataset_info.json')}
        if configs:
            raise UserError(f'{parent} has several configs; name one: {name}/{sorted(configs)[0]}')
        raise UserError(f'there is no prepared data set in {parent}; {prepare}')
    if version and version not in found:
        raise UserError(f'{parent} has no version {version} but {sorted(found)}')
    newest = max(found, key=lambda v: [int(part) if part.isdigit() else 0 for part in v.split('.')])
    return parent / (version or newest)


def _glob(folder: paths.Path, pattern: str) -> list[paths.Path]:
    """The files of a pattern; none where there is no folder, or no bucket."""
    with contextlib.suppress(FileNotFoundError), paths.errors(folder):
        return list(folder.glob(pattern)) if folder.is_dir() else []
    return []
