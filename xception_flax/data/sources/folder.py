"""A directory of class folders: `data_dir/split/class/picture`."""

import os
import pathlib

from ml_collections import ConfigDict

from xception_flax.data.sources.base import Record, Source
from xception_flax.runtime.errors import UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png')


class FolderSource:
    """The pictures of one split, classes and files in the order of their names.

    Raises:
      UserError: a class has no picture.
    """

    def __init__(self, root: pathlib.Path, class_names: list[str]):
        self.root, self.class_names = root, class_names
        self.num_classes = len(class_names)
        self.files: list[tuple[str, int]] = []
        for label, name in enumerate(class_names):
            found = sorted(entry.name for entry in os.scandir(root / name))
            pictures = [file for file in found if file.lower().endswith(EXTENSIONS)]
            if not pictures:
                raise UserError(
                    f'{root / name} has no pictures (*.jpg, *.jpeg, *.png); add some, or take the '
                    'folder away'
                )
            self.files += [(f'{name}/{file}', label) for file in pictures]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        path, label = self.files[index]
        return Record(picture=(self.root / path).read_bytes(), label=label)

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self.root / self.files[index][0])


def load(config: ConfigDict, split: str) -> Source:
    """Opens `config.dataset.data_dir/split`.

    Raises:
      UserError: there is no such folder, or no class folder with a picture in it.
    """
    if not config.dataset.data_dir:
        raise UserError('config.dataset.data_dir is not set: name the folder that holds the splits')
    data_dir = pathlib.Path(config.dataset.data_dir).expanduser()
    if not data_dir.is_dir():
        raise UserError(f'config.dataset.data_dir: there is no folder {data_dir}')
    splits = _folders(data_dir)
    if split not in splits:
        raise UserError(
            f'{data_dir} has no folder {split!r} but {splits}; '
            'set config.dataset.train_split and config.dataset.eval_split'
        )
    root = data_dir / split
    classes = _folders(root)
    if not classes:
        raise UserError(f'{root} has no class folders: pictures are looked for as {root}/CLASS/*')
    return FolderSource(root, classes)


def _folders(path: pathlib.Path) -> list[str]:
    entries = [entry for entry in os.scandir(path) if entry.is_dir()]
    return sorted(entry.name for entry in entries if not entry.name.startswith('.'))
