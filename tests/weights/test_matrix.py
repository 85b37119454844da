"""Every cell of the table in xception_flax/weights/README.md: format, network, direction."""

import functools
import re
import zipfile

import jax
import keras
import numpy as np
import pytest
import safetensors.numpy
from helpers import ROOT, default_config, random_variables

import xception_flax
from xception_flax import Trained
from xception_flax.inference.prediction import classify
from xception_flax.weights import export

CLASSES = 3
# Small forms of all networks: size of the images, and options.
SMALL = {
    'xception': (71, {'width': 1 / 16}),
    'xception41': (64, {'width': 1 / 16}),
    'xception65': (64, {'width': 1 / 16}),
    'xception71': (64, {'width': 1 / 16}),
    'inception_v3': (75, {'width': 1 / 16}),
    'vgg16': (64, {'fc_layers': (8, 8)}),
    'resnet152': (32, {'stages': (3, 4, 6, 3)}),
    'alexnet': (67, {'fc_layers': (8,)}),
    'lenet5': (32, {}),
}
APPLICATIONS = {
    'xception': keras.applications.Xception,
    'inception_v3': keras.applications.InceptionV3,
    'vgg16': keras.applications.VGG16,
    'resnet152': keras.applications.ResNet50,
}
TIMM = {
    'xception': {'variant': 'timm', 'bn_epsilon': 1e-5},
    'xception41': {},
    'xception65': {},
    'xception71': {},
    'inception_v3': {'variant': 'timm'},
    'vgg16': {'batch_norm': True, 'bn_epsilon': 1e-5},
    'resnet152': {'variant': 'timm', 'bn_epsilon': 1e-5},
}
FORMATS = {  # the networks of each, and the directions
    'the folder of a run': (SMALL, 'read, written'),
    '`.weights.h5`': (APPLICATIONS, 'read, written'),
    '`.h5`': (APPLICATIONS, 'read'),
    '`.keras`': (APPLICATIONS, 'read'),
    '`.safetensors`': (TIMM, 'read, written'),
    '`.pth`': (TIMM, 'read'),
    'a folder of the hub': (TIMM, 'read, written'),
    '`.stablehlo`': (SMALL, 'written'),
    '`.onnx`': (SMALL, 'written'),
}
NONE = '\N{EN DASH}'
QUICK = ('xception', 'lenet5')  # the others are tried with the slow tests


def cells(networks):
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in networks
    ]


def test_the_table_has_these_cells():
    text = (ROOT / 'xception_flax/weights/README.md').read_text()
    rows = [re.split(r' *\| *', line.strip('| ')) for line in text.splitlines() if '| ' in line]
    (header,) = [row for row in rows if row[0] == 'format']
    found = {row[0]: dict(zip(header[1:], row[1:], strict=False)) for row in rows}
    for kind, (networks, directions) in FORMATS.items():
        for name in SMALL:
            assert found[kind][f'`{name}`'] == (directions if name in networks else NONE), kind


@functools.cache
def network(name, timm=False):
    size, options = SMALL[name]
    size = 224 if timm and name == 'vgg16' else size
    model = xception_flax.create_model(name, CLASSES, **options, **(TIMM[name] if timm else {}))
    return Trained(
        model, random_variables(model, size), default_config(model=name, image_size=size)
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('name', cells(SMALL))
def test_the_folder_of_a_run(name, tmp_path):
    net = network(name)
    net.save(tmp_path / 'run')
    assert_same(xception_flax.load(tmp_path / 'run').variables, net.variables)


def values(arrays):
    """All numbers of a network in order of size, wherever and in whatever layout they are."""
    return np.sort(np.concatenate([np.ravel(array) for array in arrays]))


@pytest.mark.slow
@pytest.mark.parametrize('name', APPLICATIONS)
def test_files_of_keras(name, tmp_path):
    size = SMALL[name][0]
    theirs = APPLICATIONS[name](weights=None, classes=CLASSES, input_shape=(size, size, 3))
    rng = np.random.default_rng(0)
    for weight in theirs.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    theirs.save(tmp_path / 'x.h5')
    theirs.save(tmp_path / 'x.keras')
    theirs.save_weights(tmp_path / 'x.weights.h5')
    first = xception_flax.load(tmp_path / 'x.keras')
    assert (first.config.model, first.model.num_classes) == (name, CLASSES)
    np.testing.assert_array_equal(
        values(jax.tree.leaves(first.variables)), values(map(np.asarray, theirs.weights))
    )
    for other in ('x.h5', 'x.weights.h5'):
        assert_same(xception_flax.load(tmp_path / other).variables, first.variables)
    first.save(tmp_path / 'ours.weights.h5')
    before = [np.asarray(weight) for weight in theirs.weights]
    for weight in theirs.weights:
        weight.assign(np.zeros(weight.shape))
    theirs.load_weights(tmp_path / 'ours.weights.h5')
    for weight, value in zip(theirs.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def write_pth(path, arrays):
    """A state dict as PyTorch writes it; `test_pth.py` reads files of PyTorch itself."""

    def text(value):
        return b'X' + len(value).to_bytes(4, 'little') + value.encode()

    def number(value):
        return b'J' + value.to_bytes(4, 'little')

    def numbers(items):
        return b'(' + b''.join(map(number, items)) + b't'

    program = b'\x80\x02}('
    for key, (name, array) in enumerate(arrays.items()):
        kind = {'float32': 'FloatStorage', 'int64': 'LongStorage'}[array.dtype.name]
        strides = [stride // array.itemsize for stride in array.strides]
        program += text(name) + b'ctorch._utils\n_rebuild_tensor_v2\n(('
        program += text('storage') + f'ctorch\n{kind}\n'.encode() + text(str(key)) + text('cpu')
        program += number(array.size) + b'tQ' + number(0) + numbers(array.shape) + numbers(strides)
        program += b'\x89ccollections\nOrderedDict\n)RtR'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/data.pkl', program + b'u.')
        for key, array in enumerate(arrays.values()):
            archive.writestr(f'x/data/{key}', array.tobytes())


@pytest.mark.parametrize('name', cells(TIMM))
def test_files_of_pytorch(name, tmp_path):
    net = network(name, timm=True)
    net.save(tmp_path / 'x.safetensors')
    write_pth(tmp_path / 'x.pth', safetensors.numpy.load_file(tmp_path / 'x.safetensors'))
    for file in ('x.safetensors', 'x.pth'):
        assert_same(xception_flax.load(tmp_path / file, model=net.model).variables, net.variables)
    net.save(tmp_path / 'hub', for_hub=True)
    assert_same(xception_flax.load(tmp_path / 'hub', model=net.model).variables, net.variables)


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('kind', ['stablehlo', 'onnx'])
def test_programs(name, kind, tmp_path):
    net = network(name)
    size = net.config.image_size
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8)
    expected = jax.jit(classify, static_argnums=(2, 3, 4))(
        net.variables, images, net.model, 'tf', 'softmax'
    )
    path = tmp_path / f'x.{kind}'
    if kind == 'onnx':
        pytest.importorskip('jax2onnx')
    net.save(path)
    if kind == 'stablehlo':
        found = export.load_stablehlo(path)(images)
    else:
        session = pytest.importorskip('onnxruntime').InferenceSession(path)
        (found,) = session.run(['probabilities'], {'images': images})
    np.testing.assert_allclose(found, expected, atol=1e-5)
