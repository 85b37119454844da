"""In which files a split of ImageNet lies, for the ways in which people keep it."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

from xception_flax.base import paths
from xception_flax.base.errors import UserError
from xception_flax.data.decoding import SUFFIXES
from xception_flax.data.sources.folder import is_shown
from xception_flax.data.sources.imagenet import containers

# Folders below the one that is given: Kaggle's and the hub's, and TFDS's, which have versions.
BELOW = ('ILSVRC/Data/CLS-LOC', 'data')
VERSIONED = ('imagenet2012', 'imagenet')
VERSION = re.compile(r'\d+\.\d+\.\d+')
# Boxes, and the images of dogs of Task 3.
OTHERS = re.compile('ilsvrc2012_(bbox|img_.*_t3)')
TARS = {'train': 'ILSVRC2012_img_train.tar', 'validation': 'ILSVRC2012_img_val.tar'}
FOLDERS = {'train': ('train',), 'validation': ('val', 'validation')}
SPLIT = re.compile(r'(?<![a-z])(train|validation|val)(?![a-z])')
SHARD = re.compile(r'(\d+)-of-(\d+)')  # as in train-00003-of-01024


class AbsentError(UserError):
    """A copy has no images of a split."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
      title: what it is called.
      fits: whether a file of this name, in lower case, is of the kind.
      scan: gives the images in a file.
      parts: reads one image.
    """

    title: str
    fits: Callable[[str], bool]
    scan: Callable[[str], Iterable[containers.Entry]]
    parts: type[containers.Parts] = containers.Parts


TAR = Kind('tar', lambda name: name.endswith('.tar'), containers.scan_tar)
# In the order of preference, if there are several.
KINDS = (
    Kind(
        'ArrayRecord',
        lambda name: bool(re.search(r'array_?record(-\d+-of-\d+)?$', name)),
        containers.scan_array_record,
        containers.Records,
    ),
    TAR,
    Kind(
        'TFRecord',
        lambda name: bool(re.search(r'(tfrecords?|\d-of-\d+)$', name)),
        containers.scan_tfrecord,
    ),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a split.

    Attributes:
      kind: their kind; None for folders of images.
      folder: where they lie; for images, the split's folder.
      paths: the files, sorted; none for folders of images.
    """

    kind: Kind | None
    folder: paths.Path
    paths: tuple[str, ...] = ()


def find(data_dir: paths.Path, split: str) -> Layout:
    """Finds 'train' or 'validation' in a copy of ImageNet.

    Raises:
      AbsentError: it is not there.
      UserError: files of it are missing, or they are of a kind that is not read.
    """
    refused = ''
    for folder in _places(data_dir):
        inside = [folder / name for name in FOLDERS[split] if (folder / name).is_dir()]
        for found in (*(_inside(path, split) for path in inside), _files(folder, split)):
            if found:
                return found
        for path in (*inside, folder):
            refused = refused or _refusal(path, split, path in inside)
    if refused:
        raise UserError(refused)
    raise AbsentError(
        f'{data_dir} has no {split} images of ImageNet: neither {TARS[split]}, nor a folder '
        f'{FOLDERS[split][-1]} of JPEG files, nor shards of tar, TFRecord or ArrayRecord with '
        f'{split!r} in their names'
    )


def _places(data_dir: paths.Path) -> Iterator[paths.Path]:
    yield data_dir
    for below in BELOW:
        yield from (path for path in data_dir.glob(below) if path.is_dir())
    for parent in ('', *VERSIONED):  # the newest version first
        found = [path for path in (data_dir / parent).glob('*') if VERSION.fullmatch(path.name)]
        yield from sorted(found, key=lambda path: list(map(int, path.name.split('.'))))[::-1]


def _inside(folder: paths.Path, split: str) -> Layout | None:
    """The layout of a split that has its own folder."""
    entries = [entry for entry in paths.entries(folder) if is_shown(entry.name)]
    images = next((entry.name for entry in entries if _holds_images(folder, entry)), '')
    for kind in KINDS:
        chosen = sorted(e.name for e in entries if kind.fits(e.name.lower()) and e.is_file)
        if chosen == [TARS[split]] and images:
            break  # it was unpacked
        if chosen and images:
            raise UserError(
                f'{folder} has files of the kind {kind.title}, such as {chosen[0]}, beside '
                f'{images}: which is it? Move one of them away'
            )
        if chosen:
            return Layout(kind, folder, complete(folder, chosen))
    return Layout(None, folder) if images else None


def _holds_images(folder: paths.Path, entry: paths.Entry) -> bool:
    """Whether it is an image, or a folder with something in it."""
    if entry.is_folder:
        return bool(paths.entries(folder / entry.name))
    return entry.name.lower().endswith(SUFFIXES)


def _files(folder: paths.Path, split: str) -> Layout | None:
    """The layout of a split whose files lie in one folder with those of others."""
    if (folder / TARS[split]).is_file():
        return Layout(TAR, folder, (str(folder / TARS[split]),))
    names = [name for name in _names(folder) if _split(name) == split]
    for kind in KINDS:
        chosen = sorted(name for name in names if kind.fits(name.lower()))
        if chosen:
            sets = {SPLIT.split(name.lower())[0] for name in chosen}
            if len(sets) > 1:
                raise UserError(
                    f'{folder} has files of several data sets: {", ".join(sorted(sets))} ...'
                )
            return Layout(kind, folder, complete(folder, chosen))
    return None


def _refusal(folder: paths.Path, split: str, own: bool) -> str:
    """What is to be said of files that are not read at random positions; '' if there are none.

    Args:
      folder: a folder without files that are.
      split: the split.
      own: whether the folder is that of the split.
    """
    names = [name for name in _names(folder) if own or _split(name) == split]
    for name in names:
        if name.lower().endswith(('.tar.gz', '.tgz', '.tar.zst')):
            return (
                f'{folder / name} is compressed, so that nothing in it can be read at random '
                'positions: unpack it'
            )
        if name.endswith('.parquet'):
            return (
                f'{folder} has Parquet files, which are not read at random positions; '
                f'python -m xception_flax.prepare {folder} DIR writes an ArrayRecord, which is'
            )
    return ''


def _names(folder: paths.Path) -> list[str]:
    """The files in a folder, without those of ImageNet that hold other things."""
    found = paths.entries(folder)
    return [e.name for e in found if e.is_file and not OTHERS.search(e.name.lower())]


def _split(name: str) -> str:
    """The split that a file's name tells; '' if it tells none, or the file is hidden."""
    found = None if name.startswith('.') else SPLIT.search(name.lower())
    return {'val': 'validation'}.get(found[1], found[1]) if found else ''


def complete(folder: paths.Path, names: list[str]) -> tuple[str, ...]:
    """The paths of files that count their shards.

    Raises:
      UserError: one is missing.
    """
    shards = [found for name in names if (found := SHARD.search(name))]
    totals = {int(found[2]) for found in shards}
    if len(totals) > 1:
        raise UserError(f'{folder} mixes files of {" and ".join(map(str, sorted(totals)))} shards')
    for total in totals:
        if missing := sorted(set(range(total)) - {int(found[1]) for found in shards}):
            raise UserError(
                f'{folder}: {len(missing)} of {total} files are missing, first number {missing[0]} '
                f'of {names[0]} ...'
            )
    return tuple(str(folder / name) for name in names)
