"""Data sets that TFDS has prepared, read as ArrayRecord without TensorFlow."""

import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from xception_flax.data.sources.base import Record, Source
from xception_flax.runtime.errors import UserError


class TfdsSource:
    """One split of a prepared data set, its pictures still encoded."""

    def __init__(self, title: str, records: Any, features: Any):
        self.title, self.records = title, records
        self.num_classes = features['label'].num_classes
        self.class_names = features['label'].names

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        return Record(picture=record['image'], label=int(record['label']))

    def name(self, index: int) -> str:
        """The data set, the split and the record's number, and its file name where there is one."""
        file = self.records[index].get('file_name', b'')
        return f'{self.title}[{index}] {file.decode(errors="replace")}'.strip()


def load(config: ConfigDict, split: str) -> Source:
    """Opens a split of the data set `config.dataset.name`, at its `version`, in its `data_dir`.

    Raises:
      UserError: it is not there, not in ArrayRecord format, or no image classification set.
    """
    d = config.dataset
    if not d.name:
        raise UserError(
            "config.dataset.name is not set: name a TFDS data set, such as 'imagenet2012'"
        )
    return open_split(d.name, d.version, d.data_dir, split)


def open_split(name: str, version: str, data_dir: str, split: str) -> Source:
    """Opens a prepared data set.

    Args:
      name: its name, with its config if it has several ('imagenet_v2/topimages').
      version: its version; '' for the newest that is prepared.
      data_dir: TFDS's folder; '' for $TFDS_DATA_DIR or ~/tensorflow_datasets.
      split: a split in TFDS's language, such as 'train' or 'train[:1%]'.

    Raises:
      UserError: it is not there, not in ArrayRecord format, or no image classification set.
    """
    root = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    folder = _version_folder(pathlib.Path(root).expanduser(), name, version)

    import tensorflow_datasets as tfds  # slow to import

    builder = tfds.builder_from_directory(folder)
    if 'array_record' not in {f.value for f in builder.info.available_file_formats()}:
        raise UserError(
            f'{folder} is not in ArrayRecord format; convert it with: tfds convert_format '
            f'--dataset_version_dir={folder} --out_file_format=array_record '
            "(needs TensorFlow: pip install -e '.[prepare]')"
        )
    features = builder.info.features
    if not {'image', 'label'} <= set(features):
        raise UserError(f'{folder} is no image classification set: it has {sorted(features)}')
    try:
        records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise UserError(
            f'{folder} has no split {split!r}; choose from {sorted(builder.info.splits)}'
        ) from error
    return TfdsSource(f'{name}/{split}', records, features)


def _version_folder(root: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """The folder of one version: the named one, or the newest."""
    prepare = (
        f'prepare it with: tfds build {name} --data_dir={root} --file_format=array_record '
        "(needs TensorFlow: pip install -e '.[prepare]')"
    )
    parent = root / name
    found = (
        {p.parent.name for p in parent.glob('*/dataset_info.json')} if parent.is_dir() else set()
    )
    if not found:
        configs = {p.parent.parent.name for p in parent.glob('*/*/dataset_info.json')}
        if configs:
            raise UserError(f'{parent} has several configs; name one: {name}/{sorted(configs)[0]}')
        raise UserError(f'there is no prepared data set in {parent}; {prepare}')
    if version and version not in found:
        raise UserError(f'{parent} has no version {version} but {sorted(found)}')
    newest = max(found, key=lambda v: [int(part) if part.isdigit() else 0 for part in v.split('.')])
    return parent / (version or newest)
