"""Reads every picture of a config's splits once, and lists those that cannot be read.

  python -m xception_flax.data.check --config=configs/imagenet.py --config.dataset.data_dir=/data

It ends with status 1 if there are any.
"""

import concurrent.futures
import sys
from collections.abc import Iterator

from absl import flags
from tqdm import tqdm

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

flags.adopt_module_key_flags(program)


def main() -> None:
    """Checks by the flags."""
    from xception_flax.config.checks import check_values
    from xception_flax.data import sources

    config = flags.FLAGS.config
    check_values(config)
    bad = 0
    for split in dict.fromkeys((config.dataset.train_split, config.dataset.eval_split)):
        source = sources.load(config, split)
        found = 0
        for line in problems(source, config.loader_threads, split):
            tqdm.write(line, file=sys.stdout)
            found += 1
        tqdm.write(f'{split}: {len(source):,} pictures, {found} of them bad', file=sys.stdout)
        bad += found
    if bad:
        sys.exit(1)


def problems(source, threads: int, title: str) -> Iterator[str]:
    """What is wrong with each bad record, in order; shows a progress bar.

    Args:
      source: the split.
      threads: how many read at once.
      title: what to call it.
    """
    from xception_flax.data import pictures, reader

    def problem(index: int) -> str | None:
        try:
            reader.read(source, index)
        except UserError as error:
            return str(error)
        except pictures.BadPictureError as error:
            return f'{source.name(index)} cannot be read: {error}'
        return None

    # In pieces, as a pool takes in all that it is to do at once.
    with concurrent.futures.ThreadPoolExecutor(threads) as pool, tqdm(
        total=len(source), desc=title, unit='picture', disable=None, dynamic_ncols=True
    ) as bar:  # fmt: skip
        for start in range(0, len(source), 1024):
            piece = range(start, min(start + 1024, len(source)))
            for line in pool.map(problem, piece):
                bar.update()
                if line:
                    yield line


if __name__ == '__main__':
    program.run(main, needs=('config',), alone=True)
