"""Exports networks with their weights as programs that run without this package."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xception_flax import ops
from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.inference.folding import fold_batch_norm
from xception_flax.inference.prediction import classify
from xception_flax.models import Network

PLATFORMS = ('cpu', 'cuda', 'tpu')
TOLERANCE = 1e-5  # of probabilities, in float32; bfloat16 would need more


def save_stablehlo(path: pathlib.Path, model: Network, variables: Any, config: ConfigDict) -> None:
    """Writes a program of `jax.export`, for all of `PLATFORMS` and any number of images.

    The program maps images `[N, S, S, 3]` uint8, where S is `config.image_size`, to probabilities
    `[N, num_classes]` float32.
    """
    program, images = _program(model, variables, config)
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def load_stablehlo(path: str | pathlib.Path) -> Callable[[Any], jax.Array]:
    """Reads a program of `save_stablehlo`; only JAX is needed.

    Raises:
      UserError: there is no such file, or it is not an exported program.
    """
    try:
        return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
    except FileNotFoundError:
        raise UserError(f'there is no file {path}') from None
    except Exception as error:  # flatbuffers raises exceptions of many types
        raise UserError(f'{path} is no exported program, or damaged ({error})') from error


def save_onnx(path: pathlib.Path, model: Network, variables: Any, config: ConfigDict) -> None:
    """Writes the same program as ONNX, from 'images' to 'probabilities', and checks its output.

    Raises:
      UserError: a package is not installed, or the file gives other probabilities.
    """
    with extras.needed('see xception_flax/weights/README.md', 'an ONNX file'):
        import jax2onnx
        import onnx
        import onnxruntime
    program, images = _program(model, variables, config)
    with ops.lowerings('reference'):  # ONNX has no choice by platform
        proto = jax2onnx.to_onnx(
            program, [images], input_names=['images'], output_names=['probabilities']
        )
    onnx.save(proto, path)
    shape = (2, *images.shape[1:])
    trial = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (found,) = onnxruntime.InferenceSession(path).run(None, {'images': trial})
    difference = float(np.abs(found - np.asarray(jax.jit(program)(trial))).max())
    if not difference < TOLERANCE:
        path.unlink()
        raise UserError(
            f'jax2onnx made a program of {config.model} that gives other probabilities '
            f'(by {difference:.1e}); nothing was written'
        )


def _program(
    model: Network, variables: Any, config: ConfigDict
) -> tuple[Callable[[jax.Array], jax.Array], jax.ShapeDtypeStruct]:
    """The function to export, and the shape of its input."""
    constants = jax.tree.map(np.asarray, fold_batch_norm(model, variables, config.image_size))

    def program(images: jax.Array) -> jax.Array:
        return classify(constants, images, model, config.preprocessing, config.loss)

    (n,) = jax.export.symbolic_shape('n')
    size = config.image_size
    return program, jax.ShapeDtypeStruct((n, size, size, 3), jnp.uint8)
