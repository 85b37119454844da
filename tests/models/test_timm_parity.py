"""Our networks with timm's weights against what timm computes, in float64.

`timm_reference.json` has timm's results, recorded by `experiments/parity/timm_reference.py` in an
environment with torch. The differences are rounding, relative to the root mean square of an array.
Of the running statistics only the means are compared: PyTorch's running variance is unbiased, ours
and Keras's is biased.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_weights
from flax.traverse_util import flatten_dict, unflatten_dict

from xception_flax import create_model
from xception_flax.weights import timm_names

REFERENCE = json.loads((pathlib.Path(__file__).parent / 'timm_reference.json').read_text())
OURS = {theirs: (ours, options) for ours, (theirs, options) in timm_names.NETWORKS.items()}
# timm's options, as ours.
OPTIONS = {
    'mlp_ratio': lambda ratio: ('fc_layers', (int(4096 * ratio), 4096)),
    'layers': lambda layers: ('stages', tuple(layers)),
    'output_stride': lambda stride: ('output_stride', stride),
}


def arrays(model, size) -> dict:
    """The shapes of all our arrays, by path."""
    x = jnp.zeros((1, *size, 3))
    found = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    return flatten_dict(found['params'], sep='/') | flatten_dict(
        found.get('batch_stats', {}), sep='/'
    )


def timm_shapes(name, ours) -> dict[str, tuple[int, ...]]:
    """The shapes of the state dict that timm has for our arrays."""
    names = timm_names.names(name, ours)
    assert len(set(names.values())) == len(names)
    return {
        names[path]: jax.eval_shape(functools.partial(timm_names.to_theirs, path=path), x).shape
        for path, x in ours.items()
    }


@pytest.mark.parametrize('theirs', REFERENCE['networks'])
def test_every_array_has_a_name_and_a_shape_in_timm(theirs):
    name, options = OURS[theirs]
    ours = arrays(create_model(name, **options), (224, 224))
    expected = {key: tuple(shape) for key, shape in REFERENCE['networks'][theirs].items()}
    assert timm_shapes(name, ours) == expected


def test_the_layout_of_timm_and_back_changes_nothing():
    rng = np.random.default_rng(0)
    for path, shape in {
        'conv1/kernel': (3, 5, 2, 4),
        'sepconv1/depthwise/kernel': (3, 3, 1, 4),
        'logits/kernel': (6, 3),
        'fc1/kernel': (7 * 7 * 512, 3),
        'fc2/kernel': (5, 3),
        'bn/scale': (7,),
    }.items():
        array = rng.normal(size=shape)
        np.testing.assert_array_equal(
            timm_names.to_ours(timm_names.to_theirs(array, path), path), array
        )


def run_id(run) -> str:
    options = map(str, run['options'].values())
    return '-'.join([run['network'], *options, 'train' if run['train'] else 'eval'])


# Those that compile for more than six seconds, but for one of Xception.
SLOW = (
    'inception_v3-eval',
    'inception_v3-train',
    'legacy_xception-eval',
    'xception41-train',
    'xception65-8-eval',
    'xception71-16-eval',
)


@pytest.mark.parametrize(
    'run',
    [
        pytest.param(run, id=run_id(run), marks=[pytest.mark.slow] if run_id(run) in SLOW else [])
        for run in REFERENCE['runs']
    ],
)
def test_features_and_logits_equal_those_of_timm(run, float64):
    name, options = OURS[run['network']]
    options = {**options, **dict(OPTIONS[key](value) for key, value in run['options'].items())}
    if run['train']:
        options['bn_momentum'] = 0.9
    classes = run['outputs']['logits']['shape'][1]
    model = create_model(name, classes, dropout=0.0, dtype='float64', **options)
    ours = arrays(model, run['size'])
    names = timm_names.names(name, ours)
    weights = timm_weights.weights(timm_shapes(name, ours))
    variables: dict = {'params': {}, 'batch_stats': {}}
    for path in ours:
        collection = 'batch_stats' if path.endswith(('/mean', '/var')) else 'params'
        variables[collection][path] = timm_names.to_ours(weights[names[path]], path)
    variables = {key: unflatten_dict(tree, sep='/') for key, tree in variables.items()}

    @jax.jit
    def compute(variables, x):
        apply = functools.partial(model.apply, variables, x, train=run['train'])
        logits, updates = apply(mutable=['batch_stats'])
        ends, _ = apply(features_only=True, mutable=['batch_stats'])
        return list(ends.values()), logits, updates

    ends, logits, updates = compute(variables, timm_weights.images(run['size']))
    outputs = {str(i): end for i, end in enumerate(ends)} | {'logits': logits}
    if run['train']:
        stats = flatten_dict(updates['batch_stats'], sep='/')
        means = {names[path]: x for path, x in stats.items() if path.endswith('mean')}
        outputs['running_mean'] = np.concatenate([means[key] for key in sorted(means)])
    assert outputs.keys() == run['outputs'].keys()
    differences = {}
    for key, expected in run['outputs'].items():
        found = timm_weights.sample(np.asarray(outputs[key]))
        assert found['shape'] == expected['shape'], key
        numbers = ([x['rms'], *x['values']] for x in (found, expected))
        differences[key] = np.abs(np.subtract(*numbers)).max() / expected['rms']
    print(run['network'], run['options'], run['train'], f'{max(differences.values()):.1e}')
    assert max(differences.values()) < 1e-10, differences
