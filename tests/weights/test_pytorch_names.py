"""Names and shapes that programs of PyTorch give the arrays of the same networks."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from helpers import default_config, random_variables

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.models import abstract_variables
from xception_flax.weights import timm_names
from xception_flax.weights.arrays import by_path

TORCHVISION = json.loads((pathlib.Path(__file__).parent / 'data/torchvision.json').read_text())


@pytest.fixture(scope='module')
def xception(tmp_path_factory):
    """A narrow Xception as timm has it: our network and its arrays by timm's names."""
    options = {'variant': 'timm', 'bn_epsilon': 1e-5, 'width': 1 / 16}
    model = xception_flax.create_model('xception', 3, **options)
    net = xception_flax.Trained(model, random_variables(model, 299), default_config())
    path = tmp_path_factory.mktemp('timm') / 'x.safetensors'
    net.save(path)
    return net, safetensors.numpy.load_file(path)


def load(arrays, net, tmp_path):
    path = tmp_path / 'weights.bin'
    safetensors.numpy.save_file(arrays, path)
    return by_path(xception_flax.load(path, model=net.model).variables)


@pytest.mark.parametrize(
    'rename',
    [
        lambda name: f'module.{name}',
        lambda name: f'_orig_mod.module.{name}',
        lambda name: f'backbone.encoder.{name}',
        lambda name: name.replace('fc.', 'last_linear.'),
        lambda name: name.replace('fc.', 'fc.1.'),
        lambda name: name,
    ],
)
def test_prefixes_and_old_names_are_understood(rename, xception, tmp_path):
    net, arrays = xception
    found = load({rename(name): array for name, array in arrays.items()}, net, tmp_path)
    for path, value in by_path(net.variables).items():
        np.testing.assert_array_equal(found[path], value)


def test_pointwise_kernels_of_old_files_have_two_dimensions(xception, tmp_path):
    net, arrays = xception
    flat = {n: a[..., 0, 0] if 'pointwise.weight' in n else a for n, a in arrays.items()}
    assert sum(flat[n].ndim != arrays[n].ndim for n in arrays) == 34
    found = load(flat, net, tmp_path)
    for path, value in by_path(net.variables).items():
        np.testing.assert_array_equal(found[path], value)


def test_scalars_beside_the_weights_are_left_out(xception, tmp_path):
    """As in the state dict of PyTorch's AveragedModel."""
    net, arrays = xception
    averaged = {f'module.{name}': array for name, array in arrays.items()}
    found = load({'n_averaged': np.zeros((), np.int64), **averaged}, net, tmp_path)
    for path, value in by_path(net.variables).items():
        np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize('shape', [(), (3,), (3, 8, 1)])
def test_arrays_of_another_rank_are_listed(shape, xception, tmp_path):
    net, arrays = xception
    with pytest.raises(UserError, match=r'has no classifier|fc.weight is'):
        load(arrays | {'fc.weight': np.zeros(shape, np.float32)}, net, tmp_path)
    kernel = {'conv1.weight': np.zeros((2, 3, 4), np.float32)}
    with pytest.raises(UserError, match=r'conv1.weight is \(2, 3, 4\)'):
        load(arrays | kernel, net, tmp_path)


def test_a_small_classifier_of_vgg_is_named():
    shapes = {n: s for n, s in TORCHVISION['vgg16'].items() if n.startswith('features.')}
    shapes |= {'classifier.0.weight': [256, 512], 'classifier.3.weight': [2, 256]}
    arrays = {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}
    found = timm_names.canonical(arrays)
    assert {'classifier.0.weight', 'classifier.3.weight'} < found.keys()
    assert timm_names.recognise(found)[1]['fc_layers'] == ()


def test_what_fits_nothing_is_listed(tmp_path):
    arrays = {'model.patch_embed.weight': np.zeros(3), 'model.cls_token': np.zeros(3)}
    safetensors.numpy.save_file(arrays, tmp_path / 'vit.bin')
    with pytest.raises(UserError, match=r"it has \['cls_token', 'patch_embed.weight'\].*Mixed_7c"):
        xception_flax.load(tmp_path / 'vit.bin')


@pytest.mark.parametrize('name', ['vgg16', 'vgg16_bn'])
@pytest.mark.parametrize('part', ['whole', 'features', 'convolutions'])
def test_vgg_of_torchvision_is_that_of_timm(name, part):
    shapes = TORCHVISION[name]
    if part != 'whole':
        shapes = {n: s for n, s in shapes.items() if n.startswith('features.')}
    if part == 'convolutions':
        shapes = {n.removeprefix('features.'): s for n, s in shapes.items()}
    arrays = {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}
    found = timm_names.canonical(arrays)
    network, options = timm_names.recognise(found)
    assert network == 'vgg16'
    assert options.get('num_classes') == (1000 if part == 'whole' else None)
    options.pop('num_classes', None)
    assert options['fc_layers'] == ((4096, 4096) if part == 'whole' else ())
    model = xception_flax.create_model('vgg16', **options)
    ours = by_path(abstract_variables(model, 224))
    names = timm_names.names('vgg16', ours)
    for path, shape in ours.items():
        if part == 'whole' or not path.startswith('logits'):
            assert timm_names.to_ours(found[names[path]], path).shape == shape.shape, path


def test_the_dense_layers_of_vgg_take_the_features_in_our_order():
    """PyTorch flattens `[C, H, W]`, we `[H, W, C]`."""
    rng = np.random.default_rng(0)
    weight, features = rng.normal(size=(5, 512 * 7 * 7)), rng.normal(size=(7, 7, 512))
    others = {f'classifier.{n}.weight': np.zeros((4096, 4096)) for n in (3, 6)}
    arrays = {'features.0.weight': weight, 'classifier.0.weight': weight, **others}
    found = timm_names.canonical(arrays)
    ours = timm_names.to_ours(found['pre_logits.fc1.weight'], 'fc1/kernel')
    np.testing.assert_allclose(
        features.reshape(-1) @ ours, weight @ features.transpose(2, 0, 1).reshape(-1), rtol=1e-12
    )
