"""Records what timm and torchvision make of photographs, which our protocols have to reproduce.

It needs torch, torchvision, timm and scikit-learn, in an environment of their own:

    python -m venv /tmp/timm && /tmp/timm/bin/pip install torch torchvision timm scikit-learn
    /tmp/timm/bin/python experiments/parity/preprocessing_reference.py

It writes tests/data/preprocessing_reference.json: pixels of the images that their evaluation
transforms give, and the distributions of the random crops that they draw and of the rectangles that
timm erases. It has the versions of the libraries, too.
"""

import argparse
import base64
import json
import pathlib
import random
import sys
from typing import Any

import numpy as np

TESTS = pathlib.Path(__file__).parents[2] / 'tests' / 'data'
sys.path.insert(0, str(TESTS))

from boxes import covering, features  # noqa: E402
from photographs import photographs  # noqa: E402

# Protocol, side of the result, crop fraction, interpolation.
EVALUATIONS = (
    ('timm', 299, 0.875, 'bicubic'),
    ('timm', 299, 0.8975, 'bicubic'),
    ('timm', 224, 0.95, 'bicubic'),
    ('timm', 224, 0.875, 'bilinear'),
    ('torchvision', 299, 0.875, 'bilinear'),
    ('torchvision', 224, 0.875, 'bilinear'),
    ('torchvision', 224, 0.965, 'bilinear'),  # its second weights of ResNet: 232
)
EVERY = 17  # pixels between those that are recorded, in both directions
CROPS = {'375x500': (375, 500), '100x900': (100, 900), '30x20': (30, 20)}
ERASED = {'64x64': (64, 64), '48x96': (48, 96)}
DRAWS = 20_000


def main() -> None:
    """Writes the file."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    import PIL
    import timm
    import torchvision

    reference: dict[str, Any] = {
        'versions': {m.__name__: m.__version__ for m in (PIL, timm, torchvision)},
        'every': EVERY,
        'evaluations': [],
        'crops': [],
        'erasing': [],
    }
    for case in EVALUATIONS:
        transform = evaluation(*case)
        for name, image in photographs().items():
            pixels = np.asarray(transform(PIL.Image.fromarray(image)))[::EVERY, ::EVERY]
            encoded = base64.b85encode(pixels.tobytes()).decode()
            reference['evaluations'].append([*case, name, encoded])
    for protocol in ('timm', 'torchvision'):
        for name, shape in CROPS.items():
            boxes = np.array(random_crops(protocol, *shape))
            reference['crops'].append([protocol, name, summary(boxes, *shape)])
    for name, shape in ERASED.items():
        reference['erasing'].append([name, summary(erased(*shape), *shape)])
    (TESTS / 'preprocessing_reference.json').write_text(
        json.dumps(reference).replace('], [', '],\n[') + '\n'
    )


def evaluation(protocol: str, size: int, fraction: float, interpolation: str) -> Any:
    """Their transform for evaluation, without the last step to a tensor."""
    from torchvision import transforms

    if protocol == 'timm':
        from timm.data import create_transform

        whole = create_transform(
            (3, size, size), interpolation=interpolation, crop_pct=fraction, crop_mode='center'
        )
        return transforms.Compose(whole.transforms[:2])
    # As in its presets, of which some have no fraction but two numbers of pixels.
    mode = transforms.InterpolationMode(interpolation)
    resize = transforms.Resize(round(size / fraction), interpolation=mode)
    return transforms.Compose([resize, transforms.CenterCrop(size)])


def random_crops(protocol: str, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, height, width) as their random crop draws them."""
    import PIL.Image
    import torch

    image = PIL.Image.new('RGB', (width, height))
    random.seed(0)
    torch.manual_seed(0)
    if protocol == 'timm':
        from timm.data.transforms import RandomResizedCropAndInterpolation as Crop

        crop = Crop(224)
        return [crop.get_params(image, crop.scale, crop.ratio) for _ in range(DRAWS)]
    from torchvision.transforms import RandomResizedCrop

    torchvision_crop = RandomResizedCrop(224)
    return [
        torchvision_crop.get_params(image, torchvision_crop.scale, torchvision_crop.ratio)
        for _ in range(DRAWS)
    ]


def erased(height: int, width: int) -> np.ndarray:
    """Boxes (top, left, height, width) that timm's random erasing covers."""
    import torch
    from timm.data.random_erasing import RandomErasing

    random.seed(0)
    torch.manual_seed(0)
    erase, image = (
        RandomErasing(probability=1.0, mode='const', device='cpu'),
        torch.ones(3, height, width),
    )
    return np.array([covering(erase(image.clone())[0].numpy() == 0) for _ in range(DRAWS)])


def summary(boxes: np.ndarray, height: int, width: int) -> dict[str, list[list[float]]]:
    """The distributions of the area, the aspect and the position of boxes."""
    return {
        name: [[at, (x <= at).mean()] for at in np.linspace(x.min(), x.max(), 25)[1:-1].round(5)]
        for name, x in features(boxes, (height, width)).items()
    }


if __name__ == '__main__':
    main()
