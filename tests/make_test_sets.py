"""Builds small versions of the test sets by TFDS's own builders: `python make_test_sets.py FOLDER`.

What they would download is made here, in the same layout, and handed to them.
"""

import io
import json
import os
import pathlib
import sys
import tarfile
import zlib

import cv2
import numpy as np
import tensorflow_datasets as tfds

WNIDS = ('n02123045', 'n02165456', 'n09472597')  # in ImageNet-A or -R; 281, 301, 980
IMAGES = 2  # of each class
VALIDATION = 6  # images of imagenet2012
REAL = [[65], [970, 795], [], [809], [516], []]  # of the validation's images
OPEN_IMAGES = 3  # images of each of the 16 training archives and of the other splits


def jpeg(seed: str) -> bytes:
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    height, width = rng.integers(80, 120, 2)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (int(width), int(height)))
    return cv2.imencode('.jpg', image)[1].tobytes()


def write_tar(path: pathlib.Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, 'w') as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def write_folders(root: pathlib.Path, folders) -> str:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(IMAGES):
            (root / folder / f'{folder}_{i}.jpg').write_bytes(jpeg(f'{folder}{i}'))
    return str(root.parent)


def open_images(root: pathlib.Path) -> dict:
    """What `download_and_extract` gives: archives, and CSVs of labels and (no) boxes."""
    root.mkdir()
    found, ids = {'train_images': []}, {'train': [], 'test': [], 'validation': []}
    archives = [('train', p) for p in '0123456789abcdef'] + [('test', '0'), ('validation', '0')]
    for split, prefix in archives:
        names = [f'{prefix}{i:015x}' for i in range(OPEN_IMAGES)]
        ids[split] += names
        files = {f'{split}/{name}.jpg': jpeg(name) for name in names}
        tar = write_tar(root / f'{split}_{prefix}.tar', files)
        if split == 'train':
            found['train_images'].append(tar)
        else:
            found[f'{split}_images'] = tar
    head = 'ImageID,Source,LabelName,Confidence\n'
    trainable = tfds.core.tfds_path('object_detection/open_images_classes_trainable.txt')
    known = trainable.read_text().split()[:2]
    for split, names in ids.items():
        # In each archive: surely, surely not, surely; and .6, .7, .8.
        numbered = [(name, int(name[1:], 16)) for name in names]
        human = [f'{name},verification,{known[0]},{1 - i % 2}\n' for name, i in numbered]
        machine = [f'{name},machine,{known[1]},0.{6 + i}\n' for name, i in numbered]
        for kind, lines in (('human', human), ('machine', machine)):
            file = root / f'{split}_{kind}.csv'
            file.write_text(head + ''.join(lines))
            found[f'{split}_{kind}_labels'] = str(file)
        file = root / f'{split}_boxes.csv'
        file.write_text('no boxes\n')
        found[f'{split}-annotations-bbox'] = str(file)
    return found


def main(root: pathlib.Path) -> None:
    source = root / 'sources'
    manual = source / 'manual'
    manual.mkdir(parents=True)
    write_tar(
        manual / 'ILSVRC2012_img_val.tar',
        {f'ILSVRC2012_val_{i:08d}.JPEG': jpeg(str(i)) for i in range(1, VALIDATION + 1)},
    )
    inner = write_tar(source / 'inner.tar', {f'{WNIDS[0]}_1.JPEG': jpeg('train')})
    train = {f'{WNIDS[0]}.tar': pathlib.Path(inner).read_bytes()}
    write_tar(manual / 'ILSVRC2012_img_train.tar', train)
    (source / 'real.json').write_text(json.dumps(REAL))
    sketch = {f'sketch/{w}/{w}_{i}.JPEG': jpeg(f'{w}{i}') for w in WNIDS for i in range(IMAGES)}
    v2 = 'imagenetv2-matched-frequency-format-val'
    downloads = {
        'imagenet_a': write_folders(source / 'a' / 'imagenet-a', WNIDS[1:2]),
        'imagenet_r': write_folders(source / 'r' / 'imagenet-r', WNIDS[:1]),
        'imagenet_v2/matched-frequency': write_folders(source / 'v2' / v2, ('7', '999')),
        'imagenet_sketch': write_tar(source / 'sketch.tar', sketch),
        'imagenet2012': None,
        'imagenet2012_real': str(source / 'real.json'),
        'imagenet2012_corrupted/contrast_5': [],
        'open_images_v4/200k': open_images(source / 'open_images'),
    }
    config = tfds.download.DownloadConfig(manual_dir=str(manual))
    for name, given in downloads.items():
        manager = tfds.download.DownloadManager
        manager.download = manager.download_and_extract = lambda *_, given=given: given
        builder = tfds.builder(name, data_dir=root, file_format='array_record')
        builder.download_and_prepare(download_config=config)


if __name__ == '__main__':
    main(pathlib.Path(os.path.abspath(sys.argv[1])))
