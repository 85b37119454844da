"""Exported programs give the same probabilities without this package."""

import jax
import numpy as np
import pytest
from helpers import default_config, random_variables

import xception_flax
from xception_flax import Trained
from xception_flax.base.errors import UserError
from xception_flax.inference.prediction import classify
from xception_flax.weights import export

SIZE = 33
IMAGES = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
OPTIONS = {
    'xception': {'stem': 'small', 'width': 0.125, 'middle_repeats': 1},
    'resnet152': {'stages': (1, 1)},
}


@pytest.fixture(scope='module', params=OPTIONS)
def network(request):
    name = request.param
    model = xception_flax.create_model(name, 7, **OPTIONS[name])
    config = default_config(model=name, image_size=SIZE, preprocessing='torch', loss='sigmoid')
    return Trained(model, random_variables(model, SIZE), config)


@pytest.fixture(scope='module')
def expected(network):
    values = jax.jit(classify, static_argnums=(2, 3, 4))(
        network.variables, IMAGES, network.model, 'torch', 'sigmoid'
    )
    assert values.shape == (3, 7)
    assert np.ptp(values, 0).max() > 1e-3  # different images, different probabilities
    return values


def test_a_program_for_jax_accepts_any_number_of_images(network, expected, tmp_path):
    path = tmp_path / 'model.stablehlo'
    network.save(path)
    program = export.load_stablehlo(path)
    for count in (1, 3):
        found = program(IMAGES[:count])
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)  # float32
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')


def test_a_program_in_onnx_accepts_any_number_of_images(network, expected, tmp_path):
    pytest.importorskip('jax2onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    path = tmp_path / 'model.onnx'
    network.save(path)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ('images', 'tensor(uint8)', [33, 33, 3])
    for count in (1, 3):
        (found,) = session.run(['probabilities'], {'images': IMAGES[:count]})
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


@pytest.mark.parametrize('network', ['resnet152'], indirect=True)
def test_an_onnx_file_that_computes_something_else_is_removed(network, tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip('jax2onnx')
    convert = jax2onnx.to_onnx
    monkeypatch.setattr(
        jax2onnx,
        'to_onnx',
        lambda f, *args, **kwargs: convert(lambda x: 0.9 * f(x), *args, **kwargs),
    )
    with pytest.raises(UserError, match='gives other probabilities'):
        network.save(tmp_path / 'model.onnx')
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_program_is_an_error(tmp_path):
    with pytest.raises(UserError, match='there is no file'):
        export.load_stablehlo(tmp_path / 'none')
    (tmp_path / 'x').write_bytes(b'something else')
    with pytest.raises(UserError, match='is no exported program'):
        export.load_stablehlo(tmp_path / 'x')
