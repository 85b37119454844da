"""A directory of class folders: `data_dir/split/class/image`."""

import os
import pathlib

from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.data.sources.base import Record, Source

EXTENSIONS = ('.jpg', '.jpeg', '.png')


class FolderSource:
    """The images of one split, sorted by class and file name.

    Raises:
      UserError: a class has no image.
    """

    def __init__(self, root: pathlib.Path, class_names: list[str]):
        self.root, self.class_names = root, class_names
        self.num_classes = len(class_names)
        self.files: list[tuple[str, int]] = []
        for label, name in enumerate(class_names):
            found = sorted(entry.name for entry in os.scandir(root / name))
            images = [file for file in found if file.lower().endswith(EXTENSIONS)]
            if not images:
                raise UserError(
                    f'{root / name} has no images (*.jpg, *.jpeg, *.png); add some, or remove '
                    'the folder'
                )
            self.files += [(f'{name}/{file}', label) for file in images]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        path, label = self.files[index]
        return Record(image=(self.root / path).read_bytes(), label=label)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.root / self.files[index][0])


def load(config: ConfigDict, split: str) -> Source:
    """Opens `config.dataset.data_dir/split`.

    Raises:
      UserError: there is no such folder, or no class folder with an image in it.
    """
    if not config.dataset.data_dir:
        raise UserError('config.dataset.data_dir is not set: give the folder that holds the splits')
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
        raise UserError(f'{root} has no class folders: images are expected as {root}/CLASS/*')
    return FolderSource(root, classes)


def _folders(path: pathlib.Path) -> list[str]:
    entries = [entry for entry in os.scandir(path) if entry.is_dir()]
    return sorted(entry.name for entry in entries if not entry.name.startswith('.'))
