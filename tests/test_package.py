import ast
import pathlib
import subprocess
import sys

import cv2
import h5py
import jax
import numpy as np
import pytest
from helpers import DIGITS, ROOT, environment, random_variables, small_config

import xception_flax
from xception_flax.models import build_model


def test_the_public_names_are_there():
    for name in xception_flax.__all__:
        assert getattr(xception_flax, name).__doc__
        assert name in dir(xception_flax)
    with pytest.raises(AttributeError, match='nothing'):
        _ = xception_flax.nothing


def test_import_alone_loads_no_heavy_library():
    code = 'import sys, xception_flax; print(sorted({m.split(".")[0] for m in sys.modules}))'
    loaded = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    for library in ('jax', 'flax', 'numpy', 'tensorflow', 'cv2'):
        assert f"'{library}'" not in loaded.stdout


def test_no_public_name_is_that_of_a_program():
    """Importing xception_flax/NAME.py makes it the attribute NAME of the package."""
    package = pathlib.Path(xception_flax.__file__).parent
    assert not {file.stem for file in package.iterdir()} & set(xception_flax.__all__)


def test_importing_programs_changes_no_public_name():
    code = """
import importlib, os, pathlib, xception_flax, xception_flax.weights
before = [getattr(xception_flax, name) for name in xception_flax.__all__]
for file in pathlib.Path(xception_flax.__file__).parent.glob('[a-z]*.py'):
    if os.fork() == 0:  # their flags would be in conflict
        importlib.import_module(f'xception_flax.{file.stem}')
        assert [getattr(xception_flax, name) for name in xception_flax.__all__] == before
        os._exit(0)
    assert os.wait()[1] == 0, file
print(before[-1].__module__)
"""
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == ['xception_flax.weights.loading'], found.stderr


EXTRAS = ('h5py', 'keras', 'matplotlib', 'sklearn', 'tensorboardX', 'tensorflow_datasets')


def without_extras(code, folder):
    """Runs code where the packages of the extras cannot be imported; returns what it printed."""
    blocked = f'import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n'
    found = subprocess.run(
        [sys.executable, '-c', blocked + code], cwd=folder, capture_output=True, text=True,
        check=False, env=environment(),
    )  # fmt: skip
    return found.stdout + found.stderr


def test_the_core_loads_predicts_and_exports_without_the_extras(tmp_path):
    config = small_config(xception__middle_repeats=0, dataset__num_classes=10)
    model = build_model(config, 10)
    net = xception_flax.Trained(model, random_variables(model, 16), config, tuple('0123456789'))
    net.save(tmp_path / 'run')
    cv2.imwrite(str(tmp_path / 'grey.png'), np.full((20, 20), 90, np.uint8))
    code = """
import xception_flax
from xception_flax.weights.export import load_stablehlo
net = xception_flax.load('run')
(prediction,) = net.predict('grey.png', top=1)
net.save('a.safetensors')
net.save('a.stablehlo')
print(repr((prediction.labels[0].name, prediction.labels[0].probability)))
"""
    (prediction,) = net.predict(tmp_path / 'grey.png', top=1)
    label = prediction.labels[0]
    name, probability = ast.literal_eval(without_extras(code, tmp_path).splitlines()[-1])
    assert name == label.name
    assert probability == pytest.approx(label.probability, abs=1e-6)
    again = xception_flax.load(tmp_path / 'a.safetensors', model=model)
    jax.tree.map(np.testing.assert_array_equal, again.variables, net.variables)
    assert (tmp_path / 'a.stablehlo').exists()


@pytest.mark.parametrize(
    ('statement', 'message'),
    [
        ("xception_flax.load('a.h5')", "an HDF5 file needs h5py: pip install -e '.[keras]'"),
        (
            "sources.load(config, 'train')",
            "tfds/mnist/3.0.1 needs tensorflow_datasets: pip install -e '.[tfds]'",
        ),
        (
            "listing.draw([], pathlib.Path('a.png'))",
            "--save needs matplotlib: pip install -e '.[train]'",
        ),
    ],
)
def test_a_missing_package_is_one_line_that_names_its_extra(tmp_path, statement, message):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file['x'] = 1.0
    (tmp_path / 'tfds' / 'mnist' / '3.0.1').mkdir(parents=True)
    (tmp_path / 'tfds' / 'mnist' / '3.0.1' / 'dataset_info.json').write_text('{}')
    code = f"""
import pathlib
import xception_flax
from xception_flax import config as configs
from xception_flax.data import sources
from xception_flax.inference import listing
config = configs.default()
config.dataset.name, config.dataset.data_dir = 'mnist', 'tfds'
try:
    {statement}
except xception_flax.UserError as error:
    print(error)
"""
    assert without_extras(code, tmp_path).strip().endswith(message)


@pytest.mark.slow
def test_a_training_without_the_extras_says_what_it_leaves_out(tmp_path):
    command = [*DIGITS[1:], '--config.total_steps=2', f'--workdir={tmp_path}/run']
    code = f"""
import runpy
sys.argv = {command}
runpy.run_module('xception_flax.main', run_name='__main__')
"""
    output = without_extras(code, ROOT)
    assert "no curves.png: it needs matplotlib (pip install -e '.[train]')\n" in output
    assert 'no event file of TensorBoard: it needs tensorboardX' in output
    assert 'curves.png     the training curves' not in output
    assert 'final test, averaged weights: top-1' in output
    assert len((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()) == 4
    assert not (tmp_path / 'run' / 'curves.png').exists()
