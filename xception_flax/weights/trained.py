"""A trained network as one value."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from xception_flax.base.errors import UserError
from xception_flax.inference import prediction, preprocessing
from xception_flax.inference.prediction import Prediction
from xception_flax.inference.preprocessing import Image
from xception_flax.models import Network, end_points
from xception_flax.weights import saving


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network with its weights, and what is needed to use them.

    It is plain data: `net.model.apply(net.variables, x, train=False)` gives logits.

    Attributes:
      model: the network.
      variables: its variables, {'params', 'batch_stats'}.
      config: settings of the run, or those that published weights expect: image size, crop,
        preprocessing.
      class_names: a name per class, as the data has them; () if it has none, None if not known.
      measured: of a run: what its evaluation at this step found, as in `metrics.jsonl`, if there
        was one.
    """

    model: Network
    variables: dict[str, Any]
    config: ConfigDict
    class_names: tuple[str, ...] | None = None
    measured: dict[str, Any] | None = None

    def predict(
        self, images: Image | Iterable[Image], top: int = 5, crops: int = 1
    ) -> list[Prediction]:
        """Classifies images, prepared as in evaluation.

        Args:
          images: one or several, each the path of a file, its bytes, or uint8 `[H, W, 3]`.
          top: number of labels per image; all classes if there are fewer.
          crops: 1, the centre; or 10 or 144, over which probabilities are averaged, as in the tests
            of AlexNet and Inception.

        Raises:
          UserError: an image cannot be read, or an argument is out of range.
        """
        found = list(self.predict_each(images, top, crops))
        for one in found:
            if one.error:
                raise UserError(one.error)
        return found

    def predict_each(
        self, images: Image | Iterable[Image], top: int = 5, crops: int = 1
    ) -> Iterator[Prediction]:
        """Like `predict`, batch by batch; for an unreadable image the prediction says why."""
        return prediction.predict_each(
            images, self.model, self.variables, self.config, top, crops, self.class_names
        )

    def features(self, images: Image | Iterable[Image]) -> dict[str, jax.Array]:
        """The features of images, prepared as in evaluation, without the head.

        Args:
          images: as for `predict`.

        Returns:
          The last features of each resolution, `[N, H, W, C]`, by the module that they come from,
          finest first; the last ones are those that the head starts from.

        Raises:
          UserError: an image cannot be read.
        """
        x = preprocessing.preprocess(images, self.config)
        found = jax.jit(_features, static_argnames='model')(self.model, self.variables, x)
        return {name: found[name] for name in _feature_names(self.model)}

    def save(self, path: str | os.PathLike[str], for_hub: bool = False) -> str:
        """Writes the network; `load` reads all but the programs.

        Args:
          path: ends in .weights.h5 (for Keras; needs Keras), .safetensors (for timm), .stablehlo or
            .onnx (programs with the weights in them); without an ending, the folder of a run.
            'hf-hub:OWNER/NAME' is a model of the Hugging Face hub.
          for_hub: whether to write a folder as timm keeps models on the hub: weights, `config.json`
            and a model card.

        Returns:
          Where it is now.

        Raises:
          UserError: the path exists or has another ending, the format has no such network, or the
            hub refuses it.
        """
        return saving.save(
            path, self.model, self.variables, self.config, self.class_names, self.measured, for_hub
        )


@functools.cache
def _feature_names(model: Network) -> tuple[str, ...]:
    """The names of the features, finest first; what `jax.jit` returns is sorted by name."""
    return tuple(end_points(model))


def _features(model: Network, variables: dict[str, Any], x: jax.Array) -> Any:
    return model.apply(variables, x, train=False, features_only=True)
