"""Our networks with timm's weights against what timm computes (experiments/parity/).

In float64, so that what differs is the graph. Each number is relative to the array's root mean
square.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import timm_weights

from xception_flax import create_model
from xception_flax.pretrained.libraries import TIMM
from xception_flax.pretrained.load import abstract_variables, flatten
from xception_flax.pretrained.timm_names import NETWORKS

REFERENCE = json.loads((pathlib.Path(__file__).parent / 'timm_reference.json').read_text())
OURS = {theirs: (name, options) for name, (theirs, options) in NETWORKS.items()}
# timm's options, and what they are called here.
OPTIONS = {
    'layers': lambda layers: {'stages': tuple(layers)},
    'mlp_ratio': lambda ratio: {'fc_layers': (int(4096 * ratio), 4096)},
    'output_stride': lambda stride: {'output_stride': stride},
}


def shapes_of(names, shapes):
    return {names[key]: TIMM.to_theirs(np.zeros(x.shape), key).shape for key, x in shapes.items()}


@pytest.mark.parametrize('theirs', REFERENCE['networks'])
def test_names_and_shapes_are_those_of_timms_state_dict(theirs):
    name, options = OURS[theirs]
    size = 224 if name in ('vgg16', 'resnet152') else 299
    shapes = flatten(abstract_variables(create_model(name, **options), size))
    found = shapes_of(TIMM.names(name, shapes), shapes)
    assert found == {key: tuple(shape) for key, shape in REFERENCE['networks'][theirs].items()}


@pytest.mark.parametrize(
    'run',
    REFERENCE['runs'],
    ids=lambda run: f'{run["network"]}-{"training" if run["train"] else "inference"}',
)
def test_features_logits_and_statistics_agree(run, float64):
    name, options = OURS[run['network']]
    for key, value in run['options'].items():
        options = {**options, **OPTIONS[key](value)}
    model = create_model(name, 10, dtype='float64', dropout=0.0, bn_momentum=0.9, **options)
    abstract = abstract_variables(model, run['size'][0])
    shapes = flatten(abstract)
    names = TIMM.names(name, shapes)
    theirs = shapes_of(names, shapes)
    order = [key for key in REFERENCE['networks'][run['network']] if key in theirs]
    assert len(order) == len(theirs)
    arrays = timm_weights.weights({key: theirs[key] for key in order})
    variables = jax.tree_util.tree_map_with_path(
        lambda path, _: ours(arrays, names, [part.key for part in path[1:]]), abstract
    )

    # A program that runs once is not worth optimising.
    @functools.partial(
        jax.jit,
        static_argnames='train',
        compiler_options={'xla_backend_optimization_level': 0},
    )
    def compute(variables, x, train):
        apply = functools.partial(model.apply, variables, x, train=train, mutable=['batch_stats'])
        ends, _ = apply(features_only=True)
        logits, updates = apply()
        # As a list, since jit sorts dictionaries.
        return list(ends.values()), logits, updates.get('batch_stats', {})

    ends, logits, stats = compute(variables, timm_weights.pictures(run['size']), run['train'])
    found = {str(i): end for i, end in enumerate(ends)} | {'logits': logits}
    if run['train']:
        means = {names[key]: x for key, x in flatten({'': stats}).items() if key.endswith('mean')}
        found['running_mean'] = np.concatenate([means[key] for key in order if key in means])
    assert found.keys() == run['outputs'].keys()
    differences = {}
    for key, expected in run['outputs'].items():
        sample = timm_weights.sample(np.asarray(found[key]))
        assert sample['shape'] == expected['shape'], key
        difference = np.abs(np.subtract(sample['values'], expected['values'])).max()
        differences[key] = difference / expected['rms']
    print(run['network'], run['options'], f'train={run["train"]}:', differences)
    # Rounding, which batch norm over few values multiplies.
    assert max(differences.values()) < 1e-10, differences


def ours(arrays, names, path):
    key = '/'.join(path)
    return TIMM.to_ours(arrays[names[key]], key)
