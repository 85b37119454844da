"""Photographs of many sizes, made of the two that scikit-learn brings."""

import numpy as np
from sklearn.datasets import load_sample_image


def photographs() -> dict[str, np.ndarray]:
    """Images `[H, W, 3]` uint8, by a name that has their height and width."""
    china, flower = (load_sample_image(f'{name}.jpg') for name in ('china', 'flower'))
    mirrored = np.concatenate([china, china[:, ::-1]], 1)
    images = (
        china,
        flower[26:401, 70:570],
        np.ascontiguousarray(flower.swapaxes(0, 1)[:501, :333]),
        china[100:201, 300:389],  # smaller than a network's input
        np.concatenate([mirrored, mirrored[::-1]], 0),
        flower[:, :427],
    )
    return {f'{len(image)}x{image.shape[1]}': image for image in images}
