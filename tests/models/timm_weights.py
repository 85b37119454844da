"""Helper of the parity with timm: weights, images and samples, the same with and without torch."""

import math
import zlib

import numpy as np


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random arrays for a state dict, seeded by their names; activations keep an ordinary size."""
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            fan_in = math.prod(shape[1:])
            found[name] = rng.normal(0, math.sqrt(1 / fan_in), shape)
        elif name.endswith(('weight', 'running_var')):  # of batch norm
            found[name] = rng.uniform(0.5, 1.5, shape)
        else:
            found[name] = rng.normal(0, 0.1, shape)
    return found


def images(size: tuple[int, int]) -> np.ndarray:
    """Two images, `[2, H, W, 3]`."""
    return np.random.default_rng(1).uniform(-1, 1, (2, *size, 3))


def sample(array: np.ndarray) -> dict[str, list]:
    """A summary of an array: its shape, root mean square, and evenly spaced values."""
    positions = np.linspace(0, array.size - 1, 40).astype(int)
    return {
        'shape': list(array.shape),
        'rms': float(np.sqrt(np.mean(np.square(array)))),
        'values': array.reshape(-1)[positions].tolist(),
    }
