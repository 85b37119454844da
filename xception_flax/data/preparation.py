"""What `xception_flax.prepare` reads: the splits that lie in a folder, whatever their files."""

import contextlib
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.data.array_records import NAME, Labelled
from xception_flax.data.imagenet_sets import imagenet_classes
from xception_flax.data.sources import folder, imagenet
from xception_flax.data.sources.imagenet import layouts
from xception_flax.data.sources.imagenet.index import is_official, is_wnid
from xception_flax.data.sources.parquet import by_split


def open_splits(config: ConfigDict) -> dict[str, Labelled]:
    """The splits in `config.dataset.data_dir`, which have one list of classes.

    Parquet files are what the hub describes, folders of classes what they are, and tars and records
    a copy of ImageNet. A split without any label, as the hub's 'test', is left out.

    Raises:
      UserError: there are no images, they cannot be read, or the splits have several classes.
    """
    root = folder.existing(config)
    splits = {_plain(split): source for split, source in _splits(config, root).items()}
    for split, source in list(splits.items()):
        if not (np.asarray(source.labels) >= 0).any():
            logging.warning('%s: %s has no labels, and is left out', root, split)
            del splits[split]
    if not splits:
        raise UserError(f'{root} has no folders of images, no Parquet files and no ImageNet')
    lists = {tuple(source.class_names) for source in splits.values()}
    if len(lists) > 1:
        raise UserError(f'{root}: the splits {", ".join(splits)} have different classes')
    for name in next(iter(lists)):
        if not name or name != name.strip() or len(name.splitlines()) != 1:
            raise UserError(f'{root}: {name!r} cannot be the name of a class')
    return splits


def title(splits: Mapping[str, Labelled], root: pathlib.Path) -> str:
    """A name for the data set: 'imagenet', or that of its folder."""
    source = next(iter(splits.values()))
    if list(source.class_names) == list(imagenet_classes()):
        return 'imagenet'
    plain = _plain(root.absolute().name)
    return plain if NAME.fullmatch(plain) else f'images_{plain}'.rstrip('_')


def _splits(config: ConfigDict, root: pathlib.Path) -> Mapping[str, Labelled]:
    depths = ('*.parquet', '*/*.parquet', '*/*/*.parquet')
    parquet = [path for depth in depths for path in root.glob(depth) if path.name[0] != '.']
    if parquet:
        groups = {split: list(map(pathlib.Path, p)) for split, p in by_split(parquet).items()}
        for paths in groups.values():
            layouts.complete(paths[0].parent, [path.name for path in paths])
        return {s: imagenet.from_parquet(list(map(str, paths))) for s, paths in groups.items()}
    found: dict[str, layouts.Layout] = {}
    for split in imagenet.EXAMPLES:
        with contextlib.suppress(layouts.AbsentError):
            found[split] = layouts.find(root, split)
    if not any(map(_is_imagenet, found.values())):
        return folder.splits(root)
    sources = {split: imagenet.load(config, split) for split in found}
    for source in sources.values():
        if len(source) and not is_official(source.name(0)):
            raise UserError(
                f"{source.name(0)} has none of ImageNet's names, and tars and records of other "
                'data sets are not prepared'
            )
    return sources


def _is_imagenet(layout: layouts.Layout) -> bool:
    if layout.kind:
        return True
    names = os.listdir(layout.folder)  # a set of fewer classes has classes of its own
    whole = sum(map(is_wnid, names)) == len(imagenet_classes())
    return whole or any(map(is_official, names))


def _plain(text: str) -> str:
    return re.sub('[^a-z0-9]+', '_', text.lower()).strip('_')
