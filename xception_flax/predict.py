"""Says what is in pictures.

  python -m xception_flax.predict cat.jpg --workdir=/tmp/imagenet
  python -m xception_flax.predict photos/ more.png --weights=xception.h5 --top=3 --save=labels.png

A PICTURE is a JPEG or PNG file, or a folder, of which all pictures are taken. The network comes
from a run's workdir or from a file of weights, and the pictures are prepared as for `evaluate`.
One that cannot be read is told in a line; the others go on, and the status at the end is 1.
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

if TYPE_CHECKING:
    from xception_flax.inference import Prediction

flags.declare_key_flag('workdir')
flags.DEFINE_string('weights', None, "File of Keras's or timm's weights, in place of --workdir.")
flags.DEFINE_integer('step', None, 'Which checkpoint of the workdir; the newest by default.')
flags.DEFINE_integer('top', 5, 'How many labels to show of each picture.', lower_bound=1)
flags.DEFINE_enum(
    'crops',
    '1',
    ('1', '10', '144'),
    "The centre; centre, corners and their mirrors, averaged; or Inception's.",
)
flags.DEFINE_string('save', None, 'PNG to write: the pictures, with their labels below.')
flags.DEFINE_bool('json', False, 'Print one line of JSON a picture, in place of a table.')

DRAWN = 48  # pictures, at most
BAR = 20  # letters
EIGHTHS = ' ▏▎▍▌▋▊▉'


def main(*arguments: str) -> None:
    """Predicts by the flags."""
    values = flags.FLAGS
    if bool(values.weights) == bool(values.workdir):
        raise UserError('give either --workdir=DIR or --weights=FILE')
    if values.weights and values.step is not None:
        raise UserError('--step is of a --workdir; a file of weights has none')
    save = pathlib.Path(values.save).expanduser() if values.save else None
    if save and save.suffix.lower() != '.png':
        raise UserError(f'--save={save}: give the name of a .png')
    if save and not save.parent.is_dir():
        raise UserError(f'--save={save}: there is no folder {save.parent}')
    sys.stdout.reconfigure(errors='replace')  # type: ignore[union-attr]  # names of any script

    files, problems = expand(arguments)
    shown = []
    for prediction in predictions(files) if files else ():
        if prediction.error:
            problems.append(prediction.error)
        else:
            print(as_json(prediction) if values.json else as_table(prediction), flush=True)
            shown.append(prediction)
    if save and shown:
        draw(shown, save)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    if problems:
        sys.exit(1)


def expand(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files that are meant, folders replaced by all pictures in them; and what is wrong."""
    from xception_flax.data.sources.folder import EXTENSIONS

    files, problems = [], []
    for argument in arguments:
        path = pathlib.Path(argument).expanduser()
        if path.is_dir():
            inside = [str(file) for file in path.rglob('*') if file.suffix.lower() in EXTENSIONS]
            files += sorted(inside)
            if not inside:
                problems.append(f'{path} has no pictures (*.jpg, *.jpeg, *.png)')
        elif path.exists():
            files.append(str(path))
        else:
            problems.append(f'there is no file {path}')
    return files, problems


def predictions(files: Sequence[str]) -> 'Iterator[Prediction]':
    """Loads the network of the flags, and predicts.

    Raises:
      UserError: there is no such network.
    """
    import jax  # after the flags: their mistakes are told at once

    from xception_flax.config import reading
    from xception_flax.inference.prediction import predict_each
    from xception_flax.runtime.checkpoints import load_checkpoint
    from xception_flax.runtime.workdirs import read_classes

    values = flags.FLAGS
    folder = pathlib.Path(values.weights or values.workdir).expanduser()
    if values.weights:
        from xception_flax.pretrained import load_pretrained

        model, variables, config = load_pretrained(values.weights)
    else:
        dtype = reading.from_json(folder / 'config.json').dtype
        jax.config.update('jax_enable_x64', dtype == 'float64')
        model, variables, config = load_checkpoint(folder, values.step)
    names = read_classes(folder)
    crops = int(values.crops)
    yield from predict_each(files, model, variables, config, values.top, crops, names)


def as_json(prediction: 'Prediction') -> str:
    """One line: {"picture": ..., "labels": [{"index": ..., "name": ..., "probability": ...}]}."""
    labels = [dataclasses.asdict(label) for label in prediction.labels]
    return json.dumps({'picture': prediction.picture, 'labels': labels})


def as_table(prediction: 'Prediction') -> str:
    """The picture's name, and a line for each label: rank, name, probability, bar."""
    room = max(20, shutil.get_terminal_size().columns - BAR - 16)
    names = [
        label.name if len(label.name) <= room else f'{label.name[: room - 1]}…'
        for label in prediction.labels
    ]
    width = max(len(name) for name in names)
    lines = [prediction.picture]
    for rank, (name, label) in enumerate(zip(names, prediction.labels, strict=True), 1):
        full, eighths = divmod(round(label.probability * BAR * 8), 8)
        bar = ('█' * full + EIGHTHS[eighths]).rstrip()
        lines.append(f'{rank:4}  {name:{width}}  {label.probability:6.1%}  {bar}'.rstrip())
    return '\n'.join([*lines, ''])


def draw(shown: 'list[Prediction]', path: pathlib.Path) -> None:
    """Writes the pictures with their labels as a PNG, the first ones if they are very many.

    Raises:
      OSError: it cannot be written.
    """
    from xception_flax.inference import drawing

    if len(shown) > DRAWN:
        print(f'{path} has the first {DRAWN} of {len(shown)} pictures', file=sys.stderr)
    drawn = shown[:DRAWN]
    drawing.draw([prediction.picture for prediction in drawn], drawn).savefig(path)


if __name__ == '__main__':
    program.run(main, alone=True, arguments='PICTURE...')
