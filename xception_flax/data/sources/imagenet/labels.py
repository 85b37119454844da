"""The classes of ImageNet's validation images, whose names do not tell them."""

import csv
import gzip
import importlib.util
import io
import json
import pathlib
import subprocess
import sys
import tarfile

from xception_flax.base import paths
from xception_flax.base.errors import UserError

DEVKIT = 'ILSVRC2012_devkit_t12'
KAGGLE = 'LOC_val_solution.csv'
TRUTH = 'data/ILSVRC2012_validation_ground_truth.txt'  # in the development kit, like:
META = 'data/meta.mat'
# Prints the WordNet ids by the kit's numbers; SciPy comes with JAX.
READ_META = """
import io, json, sys
from scipy.io import loadmat
synsets = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)['synsets']
print(json.dumps({int(one['ILSVRC2012_ID']): str(one['WNID']) for one in synsets}))
"""


def of_validation(folder: pathlib.Path) -> dict[str, str]:
    """The WordNet ids of the classes, by the images' names.

    They are those of TFDS's list, or without TFDS of Kaggle's table or the development kit, in
    `folder` or above it (four levels, as Kaggle has it).

    Raises:
      UserError: there is none of them, or it is damaged.
    """
    tfds = importlib.util.find_spec('tensorflow_datasets')
    if tfds and tfds.origin:
        file = pathlib.Path(tfds.origin).parent / 'datasets/imagenet2012/validation_labels.txt'
        if file.exists():
            return _numbered(file.read_text('utf-8').split())
    folder = folder.absolute()
    for place in (folder, *folder.parents[:4]):
        for name, read in (
            (KAGGLE, _kaggle),
            (f'{DEVKIT}.tar.gz', _packed_devkit),
            (DEVKIT, _devkit),
        ):
            if (place / name).exists():
                try:
                    return read(place / name)
                except Exception as error:  # of many kinds, where bytes are damaged
                    raise UserError(f'{place / name} is damaged: {error}') from error
    raise UserError(
        f'the classes of the validation images are missing: put {KAGGLE} or {DEVKIT}.tar.gz into '
        f'{folder}'
    )


def files(folder: paths.Path, root: paths.Path) -> list[paths.File]:
    """The files that `of_validation` would read in a folder of `root` and above, up to that."""
    names = (KAGGLE, f'{DEVKIT}.tar.gz', f'{DEVKIT}/{TRUTH}', f'{DEVKIT}/{META}')
    places = [p for p in (folder, *folder.parents) if p == root or p.is_relative_to(root)]
    found = (paths.file(place / name) for place in places for name in names)
    return list(filter(None, found))


def _numbered(wnids: list[str]) -> dict[str, str]:
    return {f'ILSVRC2012_val_{i:08}.JPEG': wnid for i, wnid in enumerate(wnids, 1)}


def _kaggle(path: pathlib.Path) -> dict[str, str]:
    """Reads lines such as 'ILSVRC2012_val_00048981,n03995372 85 1 499 272': class and boxes."""
    with path.open(encoding='utf-8', newline='') as file:
        rows = csv.DictReader(file)
        return {f'{row["ImageId"]}.JPEG': row['PredictionString'].split()[0] for row in rows}


def _packed_devkit(path: pathlib.Path) -> dict[str, str]:
    packed = gzip.decompress(path.read_bytes())  # as a whole, which its checksum covers
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return _from_devkit(*(_member(tar, f'{DEVKIT}/{name}') for name in (TRUTH, META)))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f'{name} is no file')
    return file.read()


def _devkit(path: pathlib.Path) -> dict[str, str]:
    return _from_devkit((path / TRUTH).read_bytes(), (path / META).read_bytes())


def _from_devkit(truth: bytes, meta: bytes) -> dict[str, str]:
    """The kit counts classes from 1 in an order of its own; `meta.mat` has their WordNet ids."""
    # A damaged file may end the process that reads it.
    ids = subprocess.run([sys.executable, '-c', READ_META], input=meta, capture_output=True)
    if ids.returncode:
        raise ValueError(f'{META} cannot be read')
    wnids = json.loads(ids.stdout)
    return _numbered([wnids[str(int(number))] for number in truth.split()])
