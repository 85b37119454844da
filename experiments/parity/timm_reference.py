"""Records the outputs of timm's networks, which ours have to reproduce.

It needs torch and timm, which only benchmarks use otherwise, and so has its own environment:

    python -m venv /tmp/timm && /tmp/timm/bin/pip install torch timm
    /tmp/timm/bin/python experiments/parity/timm_reference.py

It writes tests/models/timm_reference.json: the names and shapes in the state dicts of timm's
networks, and their outputs in float64 with random weights. `tests/models/test_timm_parity.py` makes
the same weights and compares. The file in the repository was made with timm 1.0.31 and torch 2.14,
in two minutes on two CPU cores.
"""

import argparse
import json
import pathlib
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

TESTS = pathlib.Path(__file__).parents[2] / 'tests' / 'models'
sys.path.insert(0, str(TESTS))

import timm_weights  # noqa: E402

NETWORKS = (
    'legacy_xception',
    'xception41',
    'xception65',
    'xception71',
    'inception_v3',
    'vgg16',
    'resnet152',
)
# Network, its options, size of the images (odd and even sides), training mode.
RUNS = (
    ('legacy_xception', {}, (96, 87), False),
    ('legacy_xception', {}, (96, 87), True),
    ('xception41', {}, (64, 75), True),
    ('xception65', {'output_stride': 8}, (64, 75), False),
    ('xception71', {'output_stride': 16}, (64, 75), False),
    ('inception_v3', {}, (81, 75), False),
    (
        'inception_v3',
        {},
        (111, 107),
        True,
    ),  # batch statistics of only two values would amplify rounding
    ('vgg16', {'mlp_ratio': 1 / 64}, (224, 224), False),  # 64 features in the first dense layer
    ('resnet152', {'layers': (1, 2, 1, 2)}, (64, 75), False),
    ('resnet152', {'layers': (1, 2, 1, 2)}, (64, 75), True),
)
CLASSES = 10


def main() -> None:
    """Writes the file."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    import timm
    import torch

    torch.set_default_dtype(torch.float64)
    reference = {
        'versions': {'timm': timm.__version__, 'torch': torch.__version__.partition('+')[0]},
        'networks': {name: shapes(timm.create_model(name)) for name in NETWORKS},
        'runs': [],
    }
    for name, options, size, train in RUNS:
        outputs = compute(timm.create_model(name, num_classes=CLASSES, **options), size, train)
        samples = {key: timm_weights.sample(array) for key, array in outputs.items()}
        print(name, options, train, {key: f'{s["rms"]:.2g}' for key, s in samples.items()})
        run = {'network': name, 'options': options, 'size': size, 'train': train}
        reference['runs'].append({**run, 'outputs': samples})
    text = json.dumps(reference, separators=(',', ':'))
    (TESTS / 'timm_reference.json').write_text(text.replace('},"', '},\n"') + '\n')


def shapes(model: 'torch.nn.Module') -> dict[str, tuple[int, ...]]:
    """The shapes in the state dict, without the counters of batches, which nothing reads."""
    state = model.state_dict().items()
    return {name: tuple(x.shape) for name, x in state if not name.endswith('num_batches_tracked')}


def compute(model: 'torch.nn.Module', size: tuple[int, int], train: bool) -> dict[str, np.ndarray]:
    """By name: features of each resolution, logits, and in training all new running means."""
    import torch

    arrays = timm_weights.weights(shapes(model))
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict(state, strict=False)
    model.train(train)
    x = torch.from_numpy(timm_weights.images(size)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features, ends = model.forward_intermediates(x)
        outputs = {str(i): end.permute(0, 2, 3, 1) for i, end in enumerate(ends)}
        outputs['logits'] = model.forward_head(features)
    if train:
        state = model.state_dict()
        means = [state[name] for name in sorted(state) if name.endswith('running_mean')]
        outputs['running_mean'] = torch.cat(means)
    return {key: array.numpy() for key, array in outputs.items()}


if __name__ == '__main__':
    main()
