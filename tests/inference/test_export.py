"""Programs that networks become: they give the same numbers without this package."""

import jax
import numpy as np
import pytest

import xception_flax
from xception_flax import config as configs
from xception_flax.inference import export
from xception_flax.inference.prediction import classify
from xception_flax.runtime.errors import UserError

SIZE = 33


@pytest.fixture(scope='module', params=['xception', 'resnet152'])
def network(request):
    options = {'xception': {'stem': 'small', 'width': 0.125, 'middle_repeats': 1}}
    model = xception_flax.create_model(
        request.param, 7, **options.get(request.param, {'stages': (1, 1)})
    )
    c = configs.default()
    c.model, c.image_size, c.preprocessing, c.loss = request.param, SIZE, 'torch', 'sigmoid'
    x = np.zeros((1, SIZE, SIZE, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    # Statistics that are not the initial zeros and ones.
    rng = np.random.default_rng(0)
    variables['batch_stats'] = jax.tree.map(
        lambda a: rng.uniform(0.5, 1.5, a.shape).astype(a.dtype), variables['batch_stats']
    )
    return model, variables, c


def pictures(count):
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def expected(network, count):
    model, variables, _ = network
    values = classify(variables, pictures(count), model, 'torch', 'sigmoid')
    assert values.shape == (count, 7)
    return values


def test_a_program_for_jax_takes_any_number_of_pictures(network, tmp_path):
    path = tmp_path / 'model.stablehlo'
    xception_flax.save_pretrained(path, *network)
    program = export.load_stablehlo(path)
    for count in (1, 3):
        found = program(pictures(count))
        np.testing.assert_allclose(found, expected(network, count), atol=1e-6)  # float32
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')


def test_a_program_in_onnx_takes_any_number_of_pictures(network, tmp_path):
    pytest.importorskip('jax2onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    path = tmp_path / 'model.onnx'
    xception_flax.save_pretrained(path, *network)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ('pictures', 'tensor(uint8)', [33, 33, 3])
    for count in (1, 3):
        (found,) = session.run(['probabilities'], {'pictures': pictures(count)})
        np.testing.assert_allclose(found, expected(network, count), atol=1e-6)


def test_an_onnx_file_that_computes_something_else_is_not_left(network, tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip('jax2onnx')
    convert = jax2onnx.to_onnx
    monkeypatch.setattr(
        jax2onnx,
        'to_onnx',
        lambda f, *args, **kwargs: convert(lambda x: 0.9 * f(x), *args, **kwargs),
    )
    with pytest.raises(UserError, match='gives other probabilities'):
        xception_flax.save_pretrained(tmp_path / 'model.onnx', *network)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_program_is_told(tmp_path):
    with pytest.raises(UserError, match='there is no file'):
        export.load_stablehlo(tmp_path / 'none')
    (tmp_path / 'x').write_bytes(b'something else')
    with pytest.raises(UserError, match='is no exported program'):
        export.load_stablehlo(tmp_path / 'x')
