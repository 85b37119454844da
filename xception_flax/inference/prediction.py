"""Classifies images."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.base.errors import UserError
from xception_flax.data.scaling import scale
from xception_flax.inference import preprocessing
from xception_flax.inference.classes import readable
from xception_flax.inference.folding import fold_batch_norm
from xception_flax.inference.preprocessing import Image

ROWS = 32  # crops per batch, at most


@dataclasses.dataclass(frozen=True)
class Label:
    """A class that an image may belong to.

    Attributes:
      index: number of the class, from 0.
      name: name of the class.
      probability: between 0 and 1; over all classes they sum to 1 where the loss was softmax.
    """

    index: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The labels of one image.

    Attributes:
      image: its path, or 'image 3'.
      labels: the most probable ones, in order.
      error: why the image could not be read (then there are no labels), or ''.
    """

    image: str
    labels: tuple[Label, ...]
    error: str = ''


def predict_each(
    images: Image | Iterable[Image],
    model: nn.Module,
    variables: dict[str, Any],
    config: ConfigDict,
    top: int = 5,
    crops: int = 1,
    class_names: Sequence[str] | None = None,
) -> Iterator[Prediction]:
    """Classifies images; see `Trained.predict_each`, whose fields and arguments these are.

    Raises:
      UserError: `top` or `crops` is out of range.
    """
    preprocessing.check_crops(crops)
    if top < 1:
        raise UserError(f'top is {top}; ask for 1 label or more')
    names = readable(class_names, model.num_classes)
    todo = preprocessing.named(images)
    count = max(1, min(len(todo), ROWS // crops))  # images per batch
    size = config.image_size
    probabilities = jax.jit(
        _probabilities,
        static_argnames=('model', 'preprocessing', 'loss', 'crops'),
        compiler_options=ops.forward_options(jax.default_backend()),
    )
    with concurrent.futures.ThreadPoolExecutor(config.loader_threads) as pool:
        for start in range(0, len(todo), count):
            chunk = todo[start : start + count]
            cut = list(pool.map(functools.partial(_read, config=config, crops=crops), chunk))
            # All batches have one size, for a single compilation; blank images pad the last.
            batch = np.zeros((count, crops, size, size, 3), np.uint8)
            for rows, image in zip(batch, cut, strict=False):
                if not isinstance(image, str):
                    rows[:] = image
            values = np.asarray(
                probabilities(
                    variables, batch.reshape(-1, size, size, 3), model, config.preprocessing,
                    config.loss, crops,
                )
            )  # fmt: skip
            for (_, name), image, row in zip(chunk, cut, values, strict=False):
                if isinstance(image, str):
                    yield Prediction(name, (), image)
                else:
                    best = np.argsort(-row, kind='stable')[:top]
                    labels = tuple(Label(int(i), names[i], float(row[i])) for i in best)
                    yield Prediction(name, labels)


def _read(item: tuple[Image, str], config: ConfigDict, crops: int) -> np.ndarray | str:
    """The crops of an image, or why it cannot be read."""
    try:
        return preprocessing.read(*item, config, crops)
    except UserError as error:
        return str(error)


def _probabilities(
    variables: dict[str, Any],
    images: jax.Array,
    model: nn.Module,
    preprocessing: str,
    loss: str,
    crops: int,
) -> jax.Array:
    """Probabilities `[N, C]` of images whose crops are `images` `[N * crops, S, S, 3]`."""
    folded = fold_batch_norm(model, variables, images.shape[1])
    found = classify(folded, images, model, preprocessing, loss)
    return jnp.mean(found.reshape(-1, crops, found.shape[-1]), 1)


def classify(
    variables: dict[str, Any], images: jax.Array, model: nn.Module, preprocessing: str, loss: str
) -> jax.Array:
    """Probabilities `[N, C]` of images `[N, S, S, 3]` uint8."""
    logits: Any = model.apply(variables, scale(images, preprocessing), train=False)
    return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[loss](logits)
