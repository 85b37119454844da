"""Writes scikit-learn's digits, or some of them, as folders of class folders.

    python experiments/finetune/make_folders.py /tmp/digits_10 --per_class=10
    python experiments/finetune/make_folders.py /tmp/low --classes=01234
    python experiments/finetune/make_folders.py /tmp/high --classes=56789 --per_class=5

`val` has those of the 360 pictures that are the 'digits' source's test split.
"""

import collections
import pathlib

import cv2
from absl import app, flags

from xception_flax import config as configs
from xception_flax.data import sources

flags.DEFINE_string('classes', '0123456789', 'Which digits.')
flags.DEFINE_integer('per_class', None, 'Training pictures of each; all by default.')


def main(argv: list[str]) -> None:
    """Writes both splits into the folder that is named."""
    if len(argv) != 2:
        raise app.UsageError('name the folder to write')
    config = configs.default()
    config.dataset.source = 'digits'
    for split, theirs, most in (('train', 'train', flags.FLAGS.per_class), ('val', 'test', None)):
        source = sources.load(config, theirs)
        written: collections.Counter[str] = collections.Counter()
        for index in range(len(source)):
            record = source[index]
            name = source.class_names[record['label']]
            if name not in flags.FLAGS.classes or written[name] == most:
                continue
            written[name] += 1
            folder = pathlib.Path(argv[1], split, name)
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f'{index:04}.png'), record['picture'])
        print(f'{split}: {written.total()} pictures of {len(written)} classes')


if __name__ == '__main__':
    app.run(main)
