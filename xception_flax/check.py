"""Reads every image of a config's splits once, and lists those that cannot be read.

  python -m xception_flax.check --config=configs/imagenet.py --config.dataset.data_dir=/data

The status is 1 if there are any.
"""

import sys

from absl import flags

from xception_flax.runtime import program

flags.declare_key_flag('config')


def main() -> None:
    """Checks by the flags."""
    from tqdm import tqdm

    from xception_flax.data import reader, sources
    from xception_flax.training.checks import check_values

    config = flags.FLAGS.config
    check_values(config)
    unreadable = 0
    for split in dict.fromkeys((config.dataset.train_split, config.dataset.eval_split)):
        source = sources.load(config, split)
        found = 0
        bar = tqdm(total=len(source), desc=split, unit='image', disable=None, dynamic_ncols=True)
        with bar:
            for problem in reader.problems(source, config.loader_threads, config.max_megapixels):
                bar.update()
                if problem:
                    tqdm.write(problem, file=sys.stdout)
                    found += 1
        tqdm.write(f'{split}: {len(source):,} images, {found} unreadable', file=sys.stdout)
        unreadable += found
    if unreadable:
        sys.exit(1)


if __name__ == '__main__':
    program.run(main, needs=('config',), alone=True)
