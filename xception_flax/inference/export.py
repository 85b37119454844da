"""Writes networks with their weights as programs that run without this package."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.inference.prediction import probabilities
from xception_flax.runtime.errors import UserError

PLATFORMS = ('cpu', 'cuda', 'tpu')


def save_stablehlo(
    path: pathlib.Path, model: nn.Module, variables: Any, config: ConfigDict
) -> None:
    """Writes a program for `jax.export`, for every kind of device and any number of pictures.

    It takes pictures `[N, S, S, 3]` uint8, of the config's size, and gives probabilities
    `[N, num_classes]` float32.
    """
    classify, pictures = _program(model, variables, config)
    exported = jax.export.export(jax.jit(classify), platforms=PLATFORMS)(pictures)
    path.write_bytes(exported.serialize())


def load_stablehlo(path: str | pathlib.Path) -> Callable[[Any], jax.Array]:
    """Reads such a program; needs nothing but JAX.

    Raises:
      UserError: there is no such file, or it is no such program.
    """
    try:
        return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
    except FileNotFoundError:
        raise UserError(f'there is no file {path}') from None
    except Exception as error:  # flatbuffers raises what it likes
        raise UserError(f'{path} is no exported program, or damaged ({error})') from error


def save_onnx(path: pathlib.Path, model: nn.Module, variables: Any, config: ConfigDict) -> None:
    """Writes the same program as ONNX: from 'pictures' to 'probabilities'.

    Raises:
      UserError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
        import onnx
    except ImportError:
        raise UserError("writing ONNX needs jax2onnx: pip install -e '.[onnx]'") from None
    classify, pictures = _program(model, variables, config)
    with ops.plain():  # ONNX has no choice by platform
        proto = jax2onnx.to_onnx(
            classify, [pictures], input_names=['pictures'], output_names=['probabilities']
        )
    onnx.save(proto, path)


def _program(
    model: nn.Module, variables: Any, config: ConfigDict
) -> tuple[Callable[[jax.Array], jax.Array], jax.ShapeDtypeStruct]:
    """The function to be written, and the shape of what it takes."""
    constants = jax.tree.map(np.asarray, variables)

    def classify(pictures: jax.Array) -> jax.Array:
        return probabilities(constants, pictures, model, config)

    (n,) = jax.export.symbolic_shape('n')
    size = config.image_size
    return classify, jax.ShapeDtypeStruct((n, size, size, 3), jnp.uint8)
