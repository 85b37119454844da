"""Classifies images.

  python -m xception_flax.predict cat.jpg --workdir=/tmp/imagenet
  python -m xception_flax.predict photos/ more.png --weights=xception.h5 --top=3 --save=labels.png

IMAGE is a file (JPEG, PNG, WebP, BMP, GIF, TIFF), or a folder with all images in it at any depth.
The network is that of a run or of weights, and images are prepared as in evaluation. An image that
cannot be read is reported in one line; the others are classified, and the status is 1.
"""

import sys

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.declare_key_flag('workdir')
flags.DEFINE_string('weights', None, 'Weights that convert reads, in place of --workdir.')
flags.DEFINE_integer('step', None, 'Which checkpoint of the run; the newest by default.')
flags.DEFINE_integer('top', 5, 'Number of labels per image.', lower_bound=1)
flags.DEFINE_enum('crops', '1', ('1', '10', '144'), 'Crops per image, averaged.')
flags.DEFINE_string('save', None, 'PNG to write: the images with their labels.')
flags.DEFINE_bool('json', False, 'Print one line of JSON per image, in place of a table.')


def main(*arguments: str) -> None:
    """Predicts by the flags."""
    values = flags.FLAGS
    if bool(values.weights) == bool(values.workdir):
        raise UserError('give either --workdir=DIR or --weights=FILE')
    if values.weights and values.step is not None:
        raise UserError('--step belongs to --workdir: a weights file has no steps')

    from xception_flax.inference import listing
    from xception_flax.weights.loading import allow_float64, load

    save = listing.png(values.save) if values.save else None
    files, problems = listing.expand(arguments)
    where = values.weights or values.workdir
    allow_float64(where)
    net = load(where, values.step) if files else None
    shown = []
    for prediction in net.predict_each(files, values.top, int(values.crops)) if net else ():
        if prediction.error:
            problems.append(prediction.error)
        else:
            text = listing.as_json(prediction) if values.json else listing.as_table(prediction)
            print(text, flush=True)
            shown.append(prediction)
    if save and shown:
        listing.draw(shown, save)
    if problems:
        sys.exit('\n'.join(f'error: {problem}' for problem in problems))


if __name__ == '__main__':
    program.run(main, alone=True, arguments='IMAGE...')
