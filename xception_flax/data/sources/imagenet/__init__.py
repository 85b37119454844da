"""ImageNet, read in place from the copy that is there.

Whatever the copy, a split has the same images in the same order, that of their names, with the
same classes: those of ImageNet-1k by WordNet id. (TFDS re-encodes 23 training images, so their
bytes differ there.)
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data.imagenet_sets import imagenet_classes
from xception_flax.data.sources import folder
from xception_flax.data.sources.base import Record
from xception_flax.data.sources.imagenet import index, labels, layouts
from xception_flax.data.sources.imagenet.containers import Parts
from xception_flax.data.sources.parquet import ParquetSource

EXAMPLES = {'train': 1_281_167, 'validation': 50_000}


class IndexedSource:
    """Images at known places in large files."""

    def __init__(self, found: index.Index, labels: np.ndarray, parts: Parts, names: list[str]):
        self.index, self.labels, self.parts = found, labels, parts
        self.class_names, self.num_classes = names, len(names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> Record:
        found = self.index
        place = found.files[number], found.offsets[number], found.sizes[number]
        return Record(image=self.parts.read(*map(int, place)), label=int(self.labels[number]))

    def name(self, number: int) -> str:
        """The file, and the image's name in it."""
        name = self.index.names[number].decode(errors='replace')
        return f'{self.parts.paths[self.index.files[number]]}/{name}'


def load(config: ConfigDict, split: str) -> 'folder.FolderSource | IndexedSource':
    """Opens 'train' or 'validation' of the copy in `config.dataset.data_dir`.

    It may be: the two official tars; `train/CLASS/*.JPEG` and `val/`, flat or with folders of
    classes, also where Kaggle puts them; webdataset's tars; TFRecords of TFDS or TF-slim;
    ArrayRecord of TFDS or of `xception_flax.prepare`. For large files an index is kept in the
    folder `config.dataset.index`, or else in the user's cache.

    Raises:
      UserError: the split is not there, not whole, of a kind that is not read, or damaged.
    """
    data_dir, split = folder.existing(config), _official(split)
    layout = layouts.find(data_dir, split)
    if layout.kind is None:
        source: folder.FolderSource | IndexedSource = _from_folder(layout.folder)
    else:
        place = paths.on_disk(config.dataset.index or index.cache(), 'config.dataset.index')
        found = index.kept(
            place, layout.paths, layout.kind.scan, f'{split} of {data_dir}', EXAMPLES[split]
        )
        parts = layout.kind.parts(list(layout.paths))
        source = _from_index(found, parts, layout.folder)
    if len(source) != EXAMPLES[split]:
        logging.warning(
            '%s has %s images in %s, of ImageNet\'s %s',
            data_dir, f'{len(source):,}', split, f'{EXAMPLES[split]:,}',
        )  # fmt: skip
    return source


def files(config: ConfigDict, split: str) -> list[paths.File]:
    """The files of a split, and those near it that tell the classes of the validation images.

    Raises:
      UserError: as for `load`.
    """
    data_dir = paths.path(config.dataset.data_dir)
    layout = layouts.find(data_dir, _official(split))
    beside = labels.files(layout.folder, data_dir)
    if layout.kind is None:
        return paths.files(layout.folder, links=True) + beside
    chosen = set(layout.paths)
    return [f for f in paths.files(layout.folder, deep=False) if f.path in chosen] + beside


def _official(split: str) -> str:
    split = {'val': 'validation'}.get(split, split)
    if split not in EXAMPLES:
        raise UserError(f'ImageNet has no split {split!r} with labels; choose from {[*EXAMPLES]}')
    return split


def _from_index(found: index.Index, parts: Parts, place: pathlib.Path) -> IndexedSource:
    if found.left_out:
        logging.warning(
            '%s: %s files are left out, which are hidden, no images or there twice',
            place,
            found.left_out,
        )
    numbers = _labels(found.names, found.wnids, found.labels, place)
    return IndexedSource(found, numbers, parts, list(imagenet_classes()))


def _from_folder(root: pathlib.Path) -> folder.FolderSource:
    left_out: list[str] = []
    named: dict[str, tuple[str, str]] = {}
    for file in sorted(folder.images_of_classes(root, left_out)):
        name, wnid = index.official(file)
        if name in named:  # a flat folder with folders of classes in it has images twice
            left_out.append(file)
        else:
            named[name] = wnid, file
    folder.say_left_out(root, left_out)
    if not named:
        raise UserError(f'{root} has no images')
    names = sorted(named)
    wnids, files = zip(*(named[name] for name in names), strict=True)
    numbers = _labels(_encoded(names), np.array(wnids, bytes), np.full(len(names), -1), root)
    return folder.FolderSource(root, files, numbers.tolist(), list(imagenet_classes()))


def from_parquet(paths: Sequence[str]) -> ParquetSource:
    """Opens Parquet files; if all images have ImageNet's names, and no others, with its classes."""
    source = ParquetSource(paths)
    whole = len(source.class_names) in (0, len(imagenet_classes()))
    if whole and len(source) and all(map(index.is_official, source.names)):
        names, wnids = zip(*map(index.official, source.names), strict=True)
        place = pathlib.Path(paths[0]).parent
        numbers = _labels(_encoded(names), np.array(wnids, bytes), source.labels, place)
        source.names, source.labels = list(names), numbers
        source.class_names, source.num_classes = list(imagenet_classes()), len(imagenet_classes())
    return source


def _encoded(names: Sequence[str]) -> np.ndarray:
    return np.array([name.encode(errors='surrogateescape') for name in names])


def _labels(
    names: np.ndarray, wnids: np.ndarray, stored: np.ndarray, place: pathlib.Path
) -> np.ndarray:
    """The classes of all images: by WordNet id, as stored, or from the list of the validation.

    Raises:
      UserError: a class is unknown, or what the copy stores contradicts a name.
    """
    numbers = {wnid.encode(): number for number, wnid in enumerate(imagenet_classes())}
    unknown = set(wnids.tolist()) - set(numbers) - {b''}
    if unknown:
        raise UserError(
            f'{place} has {len(unknown)} classes that are not in ImageNet-1k, such as '
            f'{min(unknown).decode()}; for other sets give --config.dataset.source=folder'
        )
    named = np.array([numbers.get(wnid, -1) for wnid in wnids.tolist()], np.int32)
    wrong = np.flatnonzero((named >= 0) & (stored >= 0) & (named != stored))
    if len(wrong):
        first = names[wrong[0]].decode(errors='replace')
        raise UserError(
            f'{place}: {len(wrong):,} images are stored with another class than their name tells, '
            f'such as {first}: {stored[wrong[0]]}, not {named[wrong[0]]}'
        )
    found = np.where(named >= 0, named, stored)
    missing = np.flatnonzero(found < 0)
    if len(missing):
        listed = labels.of_validation(place)
        for number in missing.tolist():
            wnid = listed.get(names[number].decode(errors='replace'), '').encode()
            if wnid not in numbers:
                name = names[number].decode(errors='replace')
                raise UserError(f'{place}: no class is known for {name}')
            found[number] = numbers[wnid]
    return found
