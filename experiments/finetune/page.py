"""Makes a page of what a fine-tuned network gets wrong and right, and where it looks.

    python -m experiments.finetune.page RUN page.html --split=test

RUN is a run on a folder of images. The page shows the mistakes, the surest first, and as many right
answers, the least sure first: each image as the network sees it, the evidence for the answer as a
class activation map, and the probabilities.
"""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Iterator

import cv2
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib import colormaps

from experiments.reporting.page import STYLE
from xception_flax.data import decoding, images, sources
from xception_flax.data.scaling import scale
from xception_flax.data.sources import Source
from xception_flax.inference.activation import class_activation_maps
from xception_flax.inference.prediction import Prediction
from xception_flax.models import end_points
from xception_flax.runtime import program
from xception_flax.weights.loading import load
from xception_flax.weights.trained import Trained

flags.DEFINE_string('split', None, "Whose images; by default the run's evaluation split.")
flags.DEFINE_integer('images', 24, 'Of each kind, at most.', lower_bound=1)

CHUNK, BATCH = 256, 32  # images in memory: encoded; decoded, with gradients
SIDE = 224  # of a drawn image, in pixels
CARDS = """
.cards { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.card { font-size: .88rem; } .card img { width: 49%; } .card p { margin: 0; }
.bar { background: linear-gradient(90deg, #1f6fb266 var(--p), var(--band) var(--p));
  display: flex; justify-content: space-between; margin-top: .2rem; padding: .1rem .4rem; }
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the network says of one record."""

    index: int
    truth: str
    prediction: Prediction

    @property
    def right(self) -> bool:
        """Whether the most probable class is the true one."""
        return self.prediction.labels[0].name == self.truth

    @property
    def sureness(self) -> float:
        """Probability of the most probable class."""
        return self.prediction.labels[0].probability


def main(run: str, out: str) -> None:
    """Predicts all images of the split, and writes the page."""
    values = flags.FLAGS
    net = load(run)
    split = values.split or net.config.dataset.eval_split
    source = sources.load(net.config, split)
    answers = list(answer(net, source))
    wrong = sorted((a for a in answers if not a.right), key=lambda a: -a.sureness)
    right = sorted((a for a in answers if a.right), key=lambda a: a.sureness)
    accuracy = len(right) / len(answers)
    title = f'{pathlib.Path(run).name}: {accuracy:.1%} of {len(answers):,} images of {split!r}'
    parts = [
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f'<style>{STYLE}{CARDS}</style><h1>{html.escape(title)}</h1>',
        '<p>Left what the network sees, right where the evidence for its answer is (Grad-CAM). In '
        'a dark map no place speaks for the answer; the others have less still.</p>',
    ]
    for heading, found in (
        ('Mistakes, the surest first', wrong),
        ('Right, the least sure first', right),
    ):
        shown = found[: values.images]
        parts.append(f'<h2>{heading} ({len(shown)} of {len(found):,})</h2><div class="cards">')
        parts += cards(net, source, shown)
        parts.append('</div>')
    pathlib.Path(out).write_text('\n'.join(parts), encoding='utf-8')
    print(f'{title}; {out} shows {min(len(wrong), values.images)} mistakes')


def answer(net: Trained, source: Source) -> Iterator[Answer]:
    """The network's answers to all records that can be read."""
    names = source.class_names
    for start in range(0, len(source), CHUNK):
        chunk = range(start, min(start + CHUNK, len(source)))
        records = [source[index] for index in chunk]
        predictions = net.predict_each([record['image'] for record in records], 3)
        for index, record, prediction in zip(chunk, records, predictions, strict=True):
            if not prediction.error:
                yield Answer(index, names[int(record['label'])], prediction)


def cards(net: Trained, source: Source, answers: list[Answer]) -> Iterator[str]:
    """An image, its activation map and its labels, for each answer."""
    at = list(end_points(net.model))[-1]
    for start in range(0, len(answers), BATCH):
        chunk = answers[start : start + BATCH]
        crops = np.stack(
            [
                images.for_evaluation(decoding.decode(source[one.index]['image']), net.config)
                for one in chunk
            ]
        )
        maps = class_activation_maps(
            net.model,
            net.variables,
            scale(jnp.asarray(crops), net.config.preprocessing),
            at,
            [one.prediction.labels[0].index for one in chunk],
        )
        for one, crop, heat in zip(chunk, crops, np.asarray(maps), strict=True):
            yield card(one, source.name(one.index), crop, heat)


def card(one: Answer, name: str, crop: np.ndarray, heat: np.ndarray) -> str:
    """One answer in HTML.

    Args:
      one: the answer.
      name: path of the image.
      crop: what the network sees, `[S, S, 3]` uint8.
      heat: evidence for the answer, `[h, w]`.
    """
    image = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    large = cv2.resize(heat / max(heat.max(), 1e-9), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    colours = colormaps['inferno'](np.clip(large, 0, 1))[..., :3] * 255
    overlay = np.rint(0.4 * image + 0.6 * colours).astype(np.uint8)
    bars = ''.join(
        f'<div class="bar" style="--p: {label.probability:.1%}"><span>{html.escape(label.name)}'
        f'</span><span>{label.probability:.1%}</span></div>'
        for label in one.prediction.labels
    )
    truth = '' if one.right else f'is {one.truth}: '
    title = html.escape(f'{truth}{pathlib.Path(name).name}')
    return f'<div class="card">{_inline(image)} {_inline(overlay)}<p>{title}</p>{bars}</div>'


def _inline(image: np.ndarray) -> str:
    """An image of HTML, with the JPEG in it."""
    jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    text = base64.b64encode(jpeg.tobytes()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{text}">'


if __name__ == '__main__':
    program.run(main, alone=True, arguments='RUN OUT')
