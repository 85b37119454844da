"""Measures the finished runs of Tiny ImageNet on the published validation images, once each.

  python -m experiments.tiny_imagenet.validate --workdir=/tmp/tiny --data=tiny-imagenet-200

It begins when all runs of the study are done, as DESIGN.md says, and leaves out the seven images
that are also among the training images. Each run's folder gets held_out.json; a run that has one is
not measured again.
"""

import json
import pathlib
import tempfile

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.declare_key_flag('workdir')
flags.DEFINE_string('data', None, 'The folder tiny-imagenet-200.')

TWICE = (1801, 2157, 5035, 5819, 7310, 8670, 9920)  # val_N.JPEG is in train, too; see DESIGN.md


def main() -> None:
    """Measures by the flags.

    Raises:
      UserError: a run is not done, or the images are not there.
    """
    from experiments import studies
    from experiments.studies.trials import trials
    from xception_flax.base import paths

    values = flags.FLAGS
    chosen = trials(studies.TINY_IMAGENET, paths.folder(values.workdir))
    left = [trial.name for trial in chosen if not trial.standing().done]
    if left:
        raise UserError(f'{len(left)} of {len(chosen)} runs are not done: {", ".join(left)}')
    images = pathlib.Path(values.data).expanduser() / 'val'
    for trial in chosen:
        measure(trial.workdir, images)


def measure(workdir: pathlib.Path, images: pathlib.Path) -> None:
    """Measures one run, if it was not, and writes its `held_out.json`.

    Args:
      workdir: folder of the run.
      images: the folder `val`, with `images/` and `val_annotations.txt`.
    """
    from experiments.reporting.collect import HELD_OUT
    from xception_flax import load
    from xception_flax.base import paths
    from xception_flax.training.standalone import evaluate_networks

    if (workdir / HELD_OUT).exists():
        return
    net = load(workdir)
    config = net.config.copy_and_resolve_references()
    config.dataset.update(
        source='folder', data_dir=str(images / 'images'), eval_fraction=0.0,
        train_split='val', eval_split='val', labels=str(images / '{split}_annotations.txt'),
    )  # fmt: skip
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as excluded:
        excluded.writelines(f'val_{number}.JPEG\n' for number in TWICE)
        excluded.flush()
        found = evaluate_networks({'averaged': net}, config, exclude=excluded.name)
    paths.write(workdir / HELD_OUT, json.dumps(found['averaged']) + '\n')


if __name__ == '__main__':
    program.run(main, needs=('workdir', 'data'), alone=True)
