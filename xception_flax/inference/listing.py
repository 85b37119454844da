"""Predictions for a terminal: expansion of folders, tables, JSON, and a drawing."""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterable

from xception_flax.base import extras, paths
from xception_flax.base.errors import UserError
from xception_flax.data.decoding import SUFFIXES
from xception_flax.inference.prediction import Prediction

DRAWN = 48  # largest number of images in a drawing
BAR = 20  # width in letters
EIGHTHS = ' ▏▎▍▌▋▊▉'


def png(text: str) -> pathlib.Path:
    """The path of a PNG to write; a `UserError` if it cannot be one."""
    path = paths.on_disk(text, '--save')
    if path.suffix.lower() != '.png':
        raise UserError(f'--save={path}: give the name of a .png')
    if not path.parent.is_dir():
        raise UserError(f'--save={path}: there is no folder {path.parent}')
    return path


def expand(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Replaces folders by the images in them; gives the files, and what is wrong with the rest."""
    sys.stdout.reconfigure(errors='replace')  # type: ignore[union-attr]  # names in any encoding
    files, problems = [], []
    for argument in arguments:
        path = paths.path(argument)
        if path.is_dir():
            inside = [str(f) for f in paths.below(path) if _is_image(f.relative_to(path))]
            files += inside
            if not inside:
                problems.append(f'{path} has no images ({", ".join(SUFFIXES)})')
        elif path.exists():
            files.append(str(path))
        else:
            problems.append(f'there is no file {path}')
    return files, problems


def _is_image(path: pathlib.PurePath) -> bool:
    hidden = any(part.startswith('.') for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def as_json(prediction: Prediction) -> str:
    """One line: {"image": ..., "labels": [{"index": ..., "name": ..., "probability": ...}]}."""
    labels = [dataclasses.asdict(label) for label in prediction.labels]
    return json.dumps({'image': prediction.image, 'labels': labels})


def as_table(prediction: Prediction) -> str:
    """The name of the image, and a line per label: rank, name, probability, bar."""
    room = max(20, shutil.get_terminal_size().columns - BAR - 16)
    names = [
        label.name if len(label.name) <= room else f'{label.name[: room - 1]}…'
        for label in prediction.labels
    ]
    width = max(len(name) for name in names)
    lines = [prediction.image]
    for rank, (name, label) in enumerate(zip(names, prediction.labels, strict=True), 1):
        full, eighths = divmod(round(label.probability * BAR * 8), 8)
        bar = ('█' * full + EIGHTHS[eighths]).rstrip()
        lines.append(f'{rank:4}  {name:{width}}  {label.probability:6.1%}  {bar}'.rstrip())
    return '\n'.join([*lines, ''])


def draw(shown: list[Prediction], path: pathlib.Path) -> None:
    """Writes the images with their labels as a PNG, at most the first `DRAWN`.

    Raises:
      OSError: the file cannot be written.
      UserError: matplotlib is missing.
    """
    with extras.needed('train', '--save'):
        from xception_flax.inference import drawing
    if len(shown) > DRAWN:
        print(f'{path} has the first {DRAWN} of {len(shown)} images', file=sys.stderr)
    drawn = shown[:DRAWN]
    drawing.draw([prediction.image for prediction in drawn], drawn).savefig(path)
