"""Writes scikit-learn's digits, or some of them, as class folders of PNG files.

    python experiments/finetune/make_folders.py /tmp/digits_10 --per_class=10
    python experiments/finetune/make_folders.py /tmp/low --classes=01234
    python experiments/finetune/make_folders.py /tmp/high --classes=56789 --per_class=5

`train` and `val` get the images of the splits 'train' and 'test' (360 images) of the source
'digits'.
"""

import collections
import pathlib

import cv2
from absl import flags

from xception_flax import config as configs
from xception_flax.data import sources
from xception_flax.runtime import program

flags.DEFINE_string('classes', '0123456789', 'Digits to write.')
flags.DEFINE_integer('per_class', None, 'Training images per digit; all by default.')


def main(target: str) -> None:
    """Writes both splits into the folder `target`."""
    config = configs.default()
    config.dataset.source = 'digits'
    for split, of_source, limit in (
        ('train', 'train', flags.FLAGS.per_class),
        ('val', 'test', None),
    ):
        source = sources.load(config, of_source)
        written: collections.Counter[str] = collections.Counter()
        for index in range(len(source)):
            record = source[index]
            name = source.class_names[record['label']]
            if name not in flags.FLAGS.classes or written[name] == limit:
                continue
            written[name] += 1
            folder = pathlib.Path(target, split, name)
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f'{index:04}.png'), record['image'])
        print(f'{split}: {written.total()} images of {len(written)} classes')


if __name__ == '__main__':
    program.run(main, alone=True, arguments='FOLDER')
