"""Writes images as ArrayRecord, which is read quickly at random positions; without TensorFlow.

  python -m xception_flax.prepare imagenet-1k /data    # ImageNet of any kind, also Parquet files
  python -m xception_flax.prepare flowers /data        # folders of classes, in folders of splits

The images stay encoded as they are. Every file is read again after it is written. The same command
continues what was interrupted. TFDS reads the result, too.
"""

import pathlib

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.DEFINE_string('name', None, "Name of the data set; 'imagenet', or that of the folder.")


def main(source: str, target: str) -> None:
    """Prepares by the arguments."""
    from xception_flax import config as configs
    from xception_flax.base import paths
    from xception_flax.data import array_records, preparation

    config = configs.default()
    config.dataset.data_dir = source
    out = paths.on_disk(target, 'DIR')
    splits = preparation.open_splits(config)
    name = flags.FLAGS.name or preparation.title(splits, pathlib.Path(source))
    folder = out / name / array_records.VERSION
    if folder.resolve().is_relative_to(pathlib.Path(source).expanduser().resolve()):
        raise UserError(
            f'the images would go to {folder}, which lies in {source}: give another DIR'
        )
    written = array_records.write(splits, folder, name)
    for split, one in written.items():
        print(f'{split}: {sum(one.lengths):,} images, {one.size / 1e6:,.1f} MB in {folder}')
        for line in one.unreadable:
            print(f'  left out, as it cannot be read: {line}')
    how = (
        '' if name == 'imagenet' else f' --config.dataset.source=tfds --config.dataset.name={name}'
    )
    print(f'to train: --config.dataset.data_dir={target}{how}')


if __name__ == '__main__':
    program.run(main, alone=True, arguments='SOURCE DIR')
