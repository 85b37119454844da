"""Reads every image of a config's splits once, and says what is there.

  python -m xception_flax.check --config=configs/imagenet.py --config.dataset.data_dir=/data

Lists the images that cannot be read; counts classes and sizes; finds images that are there twice,
or in both splits. The status is 1 if there are unreadable ones.
"""

import sys

from absl import flags

from xception_flax.runtime import program

flags.declare_key_flag('config')


def main() -> None:
    """Checks by the flags."""
    from tqdm import tqdm

    from xception_flax.data import sources
    from xception_flax.data.survey import Survey, look
    from xception_flax.training.checks import check_values

    config = flags.FLAGS.config
    check_values(config)
    surveys: list[Survey] = []
    splits = list(dict.fromkeys((config.dataset.train_split, config.dataset.eval_split)))
    for split, source in zip(splits, sources.load_all(config, splits), strict=True):
        survey = Survey(split, source)
        bar = tqdm(total=len(source), desc=split, unit='image', disable=None, dynamic_ncols=True)
        with bar:
            for seen in look(source, config):
                bar.update()
                survey.add(seen)
                if seen.problem:
                    tqdm.write(seen.problem, file=sys.stdout)
        lines = survey.lines(config)
        for other in surveys:
            lines += survey.shared(other)
        tqdm.write('\n'.join(lines), file=sys.stdout)
        surveys.append(survey)
    if any(survey.unreadable for survey in surveys):
        sys.exit(1)


if __name__ == '__main__':
    program.run(main, needs=('config',), alone=True)
