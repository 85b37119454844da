"""Images in folders of classes, or beside a list of labels."""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data.decoding import SUFFIXES
from xception_flax.data.sources import label_files
from xception_flax.data.sources.base import Record, Source

SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'eval')
# Folders that systems put beside images; names that begin with a dot are hidden ones.
SYSTEM_FOLDERS = ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information')


class FolderSource:
    """Files of images below a folder, each with its label."""

    def __init__(
        self,
        root: pathlib.Path,
        files: Sequence[str],
        labels: Sequence[int | np.ndarray],
        class_names: Sequence[str],
    ):
        self.root, self.files, self.labels = root, files, labels
        self.class_names, self.num_classes = class_names, len(class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        with open(f'{self.root}/{self.files[index]}', 'rb', buffering=0) as file:
            return Record(image=file.read(), label=self.labels[index])

    def name(self, index: int) -> str:
        """The image's path."""
        return _printable(f'{self.root}/{self.files[index]}')


def load(config: ConfigDict, split: str) -> Source:
    """Opens a split of `config.dataset.data_dir`.

    By default a split is a folder with a folder for each class. With `eval_fraction` there are
    only the folders of classes, and a hash of each path tells the split; with `labels`, a file
    tells the labels (`label_files.read`). Images are found at any depth.

    Raises:
      UserError: there is no such folder or split, or no class folder with an image in it.
    """
    dataset, data_dir = config.dataset, existing(config)
    if dataset.eval_fraction:
        _check_split(config, split)
    if dataset.labels:
        source = _labelled(config, data_dir, split)
    else:
        source = _class_folders(_split_folder(config, data_dir, split))
    return _part(config, source, split) if dataset.eval_fraction else source


def files(config: ConfigDict, split: str) -> list[paths.File]:
    """The files of a split: those in its folder, or all where other things tell the split.

    Raises:
      UserError: `load` would say that something is wrong with the folder.
    """
    root = paths.path(config.dataset.data_dir)
    if not paths.in_bucket(root):
        load(config, split)  # also an empty folder, which a copy would not have
    whole = config.dataset.labels or config.dataset.eval_fraction
    # A class may be a link to a folder; with a table such images are not found in place, either.
    return paths.files(root if whole else root / split, links=not config.dataset.labels)


def existing(config: ConfigDict) -> pathlib.Path:
    """The folder `config.dataset.data_dir`.

    Raises:
      UserError: it is not set, not there, or in a bucket.
    """
    if not config.dataset.data_dir:
        raise UserError('config.dataset.data_dir is not set: give the folder that holds the images')
    data_dir = paths.path(config.dataset.data_dir)
    if paths.in_bucket(data_dir):
        raise UserError(
            f'config.dataset.data_dir: {data_dir} is in a bucket, where only ArrayRecord files are '
            'read in place (config.dataset.source=tfds); --config.dataset.copy_to=DIR copies the '
            'others to this machine first, or mount the bucket and give the folder'
        )
    if not data_dir.is_dir():
        raise UserError(f'config.dataset.data_dir: there is no folder {data_dir}')
    return data_dir


def splits(root: pathlib.Path) -> dict[str, FolderSource]:
    """The class folders in `root`, as 'train'; or in each of its folders with the name of a split.

    All splits have the same classes, also those of which they have no image.

    Raises:
      UserError: there is no class folder with an image in it.
    """
    found = _folders(root)
    of_splits = [name for name in found if name.lower() in SPLITS]
    if not of_splits:
        return {'train': _class_folders(root)} if found else {}
    classes = sorted({name for split in of_splits for name in _folders(root / split)})
    return {split: _class_folders(root / split, classes) for split in of_splits}


def _class_folders(root: pathlib.Path, known: Sequence[str] = ()) -> FolderSource:
    """The images of all class folders, sorted by class and path; of `known` classes, if given."""
    there = _folders(root)
    classes = known or there
    if not there:
        raise UserError(f'{root} has no class folders: images are expected as {root}/CLASS/*')
    files: list[str] = []
    labels: list[int] = []
    left_out: list[str] = []
    for label, name in enumerate(classes):
        found = images(root, name, left_out) if name in there else []
        if not found and not known:
            raise UserError(
                f'{_printable(str(root / name))} has no images ({", ".join(SUFFIXES)}); add some, '
                'or remove the folder'
            )
        files += found
        labels += [label] * len(found)
    say_left_out(root, left_out)
    return FolderSource(root, files, labels, [_printable(name) for name in classes])


def _labelled(config: ConfigDict, data_dir: pathlib.Path, split: str) -> FolderSource:
    """The images that a file of labels names."""
    left_out: list[str] = []
    paths = images(data_dir, '.', left_out)
    found = label_files.read(config, data_dir, split, paths)
    left_out += sorted(set(paths) - set(found.files))
    if not config.dataset.labels.count('{split}'):
        say_left_out(data_dir, left_out)
    return FolderSource(data_dir, found.files, found.labels, found.class_names)


def _part(config: ConfigDict, source: FolderSource, split: str) -> FolderSource:
    """The examples that belong to the split by a hash of their path, which never changes."""
    fraction, evaluation = config.dataset.eval_fraction, split == config.dataset.eval_split
    chosen = [i for i, f in enumerate(source.files) if (_hash(f) < fraction) == evaluation]
    return FolderSource(
        source.root,
        [source.files[i] for i in chosen],
        [source.labels[i] for i in chosen],
        source.class_names,
    )


def _hash(path: str) -> float:
    """A number from 0 to 1."""
    digest = hashlib.sha256(path.encode(errors='surrogateescape')).digest()
    return int.from_bytes(digest[:6], 'big') / 2**48


def _check_split(config: ConfigDict, split: str) -> None:
    train, evaluation = config.dataset.train_split, config.dataset.eval_split
    if train == evaluation:
        raise UserError(
            'with config.dataset.eval_fraction, train_split and eval_split need two names, and '
            f'both are {train!r}'
        )
    if split not in (train, evaluation):
        raise UserError(
            f'config.dataset.eval_fraction makes the splits {train!r} and {evaluation!r}; there is '
            f'no {split!r}'
        )


def _split_folder(config: ConfigDict, data_dir: pathlib.Path, split: str) -> pathlib.Path:
    """The folder with the classes of a split."""
    if config.dataset.eval_fraction:
        return data_dir
    folders = _folders(data_dir)
    if split in folders:
        return data_dir / split
    shown = [_printable(name) for name in folders]
    message = (
        f'{data_dir} has no folder {split!r} but {shown[:8]}{"..." if len(shown) > 8 else ""}; '
        'set config.dataset.train_split and config.dataset.eval_split'
    )
    if folders and all(next(_walk(data_dir, name, []), None) for name in folders):
        message += (
            '. If these are classes, --config.dataset.eval_fraction=0.1 sets a tenth of the images '
            'apart for evaluation'
        )
    raise UserError(message)


def images(root: pathlib.Path, folder: str, left_out: list[str]) -> list[str]:
    """Paths of the images in a folder of `root`, relative to it, sorted."""
    return sorted(_walk(root, folder, left_out))


def images_of_classes(root: pathlib.Path, left_out: list[str]) -> list[str]:
    """Paths of the images in `root`, and in its folders and links to folders."""
    skipped: list[str] = []
    found = images(root, '.', skipped)
    links = [name for name in skipped if '/' not in name and (root / name).is_dir()]
    left_out += set(skipped) - set(links)
    for name in links:
        found += images(root, name, left_out)
    return found


def _walk(root: pathlib.Path, folder: str, left_out: list[str]) -> Iterator[str]:
    """The images in a folder and its folders; hidden and other files are added to `left_out`."""
    for entry in os.scandir(root / folder):
        path = entry.name if folder == '.' else f'{folder}/{entry.name}'
        if entry.is_dir(follow_symlinks=False):  # a link might lead back
            if is_shown(entry.name):
                yield from _walk(root, path, left_out)
        elif is_shown(entry.name) and _is_image(entry):
            yield path
        else:
            left_out.append(path)


def _is_image(entry: os.DirEntry) -> bool:
    """Whether it is a file or a link with the name of an image; a pipe is not."""
    return entry.name.lower().endswith(SUFFIXES) and (entry.is_file() or entry.is_symlink())


def _folders(path: pathlib.Path) -> list[str]:
    entries = [entry for entry in os.scandir(path) if entry.is_dir()]
    return sorted(entry.name for entry in entries if is_shown(entry.name))


def is_shown(name: str) -> bool:
    """Whether a name is neither hidden nor one of a system's folders."""
    return not name.startswith('.') and name not in SYSTEM_FOLDERS


def say_left_out(root: pathlib.Path, left_out: Sequence[str]) -> None:
    """Warns of files that are left out, if there are any."""
    if left_out:
        logging.warning(
            '%s: %s files are left out, which are hidden, no images or without a label, such as %s',
            root, f'{len(left_out):,}', _printable(min(left_out)),
        )  # fmt: skip


def _printable(path: str) -> str:
    """A path with a mark in place of bytes that are no UTF-8."""
    return os.fsencode(path).decode('utf-8', 'replace')
