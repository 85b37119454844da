"""Classifies pictures."""

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
from xception_flax.data.scaling import scale
from xception_flax.inference import preprocessing
from xception_flax.inference.classes import readable
from xception_flax.inference.folding import fold_batch_norm
from xception_flax.inference.preprocessing import Picture
from xception_flax.runtime.errors import UserError

ROWS = 32  # at most so many crops go through the network at once


@dataclasses.dataclass(frozen=True)
class Label:
    """A class that a picture may be of.

    Attributes:
      index: number of the class, from 0.
      name: what to call it.
      probability: between 0 and 1; over all classes they sum to 1 where the loss was softmax.
    """

    index: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of a picture.

    Attributes:
      picture: its path, or 'picture 3'.
      labels: the most probable ones, in order.
      error: why it could not be read (then there are no labels), or ''.
    """

    picture: str
    labels: tuple[Label, ...]
    error: str = ''


def predict(
    pictures: Picture | Iterable[Picture],
    model: nn.Module,
    variables: dict[str, Any],
    config: ConfigDict,
    top: int = 5,
    crops: int = 1,
    class_names: Sequence[str] | None = None,
) -> list[Prediction]:
    """Classifies pictures, as evaluation would.

    The model, its variables and the config are what `load_checkpoint` and `load_pretrained` give.

    Args:
      pictures: one or several, each the path of a JPEG or PNG, its bytes, or uint8 `[H, W, 3]`.
      model: the network.
      variables: its variables.
      config: of its run.
      top: how many labels to give of each picture, of all classes if there are fewer.
      crops: 1, the centre; or 10 or 144, over which probabilities are averaged, as the tests of
        AlexNet and of Inception do.
      class_names: one for each class, such as `runtime.workdirs.read_classes(workdir)`. By default
        1000 classes are ImageNet's and others are called 'class 17'.

    Raises:
      UserError: a picture cannot be read, or another argument makes no sense.
    """
    found = list(predict_each(pictures, model, variables, config, top, crops, class_names))
    for prediction in found:
        if prediction.error:
            raise UserError(prediction.error)
    return found


def predict_each(
    pictures: Picture | Iterable[Picture],
    model: nn.Module,
    variables: dict[str, Any],
    config: ConfigDict,
    top: int = 5,
    crops: int = 1,
    class_names: Sequence[str] | None = None,
) -> Iterator[Prediction]:
    """Like `predict`, batch by batch, and a picture that cannot be read does not end it."""
    preprocessing.check_crops(crops)
    if top < 1:
        raise UserError(f'top is {top}; ask for 1 label or more')
    names = readable(class_names, model.num_classes)
    todo = preprocessing.named(pictures)
    count = max(1, min(len(todo), ROWS // crops))  # of pictures at once
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
            # Always of one size, so that it is compiled once; what is not there stays blank.
            batch = np.zeros((count, crops, size, size, 3), np.uint8)
            for rows, picture in zip(batch, cut, strict=False):
                if not isinstance(picture, str):
                    rows[:] = picture
            values = np.asarray(
                probabilities(
                    variables, batch.reshape(-1, size, size, 3), model, config.preprocessing,
                    config.loss, crops,
                )
            )  # fmt: skip
            for (_, name), picture, row in zip(chunk, cut, values, strict=False):
                if isinstance(picture, str):
                    yield Prediction(name, (), picture)
                else:
                    best = np.argsort(-row, kind='stable')[:top]
                    labels = tuple(Label(int(i), names[i], float(row[i])) for i in best)
                    yield Prediction(name, labels)


def _read(item: tuple[Picture, str], config: ConfigDict, crops: int) -> np.ndarray | str:
    """The picture's crops, or why it cannot be read."""
    try:
        return preprocessing.read(*item, config, crops)
    except UserError as error:
        return str(error)


def _probabilities(
    variables: dict[str, Any],
    pictures: jax.Array,
    model: nn.Module,
    preprocessing: str,
    loss: str,
    crops: int,
) -> jax.Array:
    """Probabilities `[N, C]` of pictures whose crops are `pictures` `[N * crops, S, S, 3]`."""
    folded = fold_batch_norm(model, variables, pictures.shape[1])
    found = classify(folded, pictures, model, preprocessing, loss)
    return jnp.mean(found.reshape(-1, crops, found.shape[-1]), 1)


def classify(
    variables: dict[str, Any], pictures: jax.Array, model: nn.Module, preprocessing: str, loss: str
) -> jax.Array:
    """Probabilities `[N, C]` of pictures `[N, S, S, 3]` uint8."""
    logits: Any = model.apply(variables, scale(pictures, preprocessing), train=False)
    return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[loss](logits)
