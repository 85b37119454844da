"""Random boxes of crops and erasing, of ours and in the record of others."""

import numpy as np


def covering(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) around the true values of `mask`, `[H, W]`."""
    rows, columns = np.nonzero(mask)
    top, left = rows.min(), columns.min()
    return top, left, rows.max() + 1 - top, columns.max() + 1 - left


def features(boxes: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """What boxes `[K, 4]` in images of `shape` are compared by."""
    top, left, height, width = boxes.T
    return {
        'area': height * width / np.prod(shape),
        'aspect': width / height,
        'top': top / shape[0],
        'left': left / shape[1],
    }
