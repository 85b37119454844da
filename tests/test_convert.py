"""What a new user does with weights of Keras, as commands."""

import json

import cv2
import jax
import keras
import numpy as np
import pytest
from helpers import ROOT, changed, write_class_folders

import xception_flax
from xception_flax.config import reading
from xception_flax.data.images import for_evaluation
from xception_flax.training.setup import set_up

CLASSES = 4


@pytest.fixture(scope='module')
def theirs():
    keras.utils.set_random_seed(0)
    return keras.applications.Xception(weights=None, classes=CLASSES)


@pytest.fixture(scope='module')
def weights(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp('keras') / 'mine.weights.h5'
    theirs.save_weights(path)
    return path


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder for training: two classes of two colours."""
    root = tmp_path_factory.mktemp('images')
    return write_class_folders(root, {'train': 32, 'val': 2}, classes=2)


def test_predict_prints_the_probabilities_of_keras(weights, theirs, images, program):
    image = images / 'val' / '1' / '1.png'
    output = program(
        '-m', 'xception_flax.predict', str(image), f'--weights={weights}', '--json'
    )  # fmt: skip
    (line,) = [line for line in output.splitlines() if line.startswith('{')]
    labels = json.loads(line)['labels']
    config = xception_flax.load(weights).config
    pixels = for_evaluation(cv2.imread(str(image))[..., ::-1], config)
    x = keras.applications.xception.preprocess_input(pixels[None].astype(np.float32))
    expected = theirs.predict(x, verbose=0)[0]
    found = {label['index']: label['probability'] for label in labels}
    np.testing.assert_allclose([found[i] for i in range(CLASSES)], expected, atol=1e-6)
    assert [label['index'] for label in labels] == list(np.argsort(-expected))


def test_describe_counts_its_parameters(weights, program):
    output = program('-m', 'xception_flax.describe', f'--weights={weights}')
    assert f'{22_855_952 - 2049 * (1000 - CLASSES):,}' in output


def test_convert_writes_a_workdir_then_timm_and_notes_the_differences(weights, program, tmp_path):
    output = program('-m', 'xception_flax.convert', str(weights), str(tmp_path / 'run'))
    assert 'xception, 4 classes, 20,815,148 parameters' in output
    assert f'written to {tmp_path}/run' in output
    output = program(
        '-m', 'xception_flax.convert', str(tmp_path / 'run'), str(tmp_path / 'x.safetensors')
    )  # fmt: skip
    assert "note: timm's network has max pools of symmetric padding" in output
    first = xception_flax.load(weights).variables
    timm = xception_flax.load(tmp_path / 'x.safetensors')
    last = timm.variables
    assert timm.config.xception.variant == 'timm'
    np.testing.assert_array_equal(
        first['params']['middle_flow']['block8']['sepconv3']['pointwise']['kernel'],
        last['params']['middle_flow']['block8']['sepconv3']['pointwise']['kernel'],
    )
    output = program(
        '-m', 'xception_flax.convert', str(weights), str(tmp_path / 'run'), status=1
    )  # fmt: skip
    assert output == f'error: {tmp_path}/run exists already; remove it, or give another name\n'


def test_finetuning_starts_from_them(weights, images):
    config = reading.read_file(ROOT / 'configs' / 'finetune.py')
    changed(config, init__weights=str(weights), dataset__data_dir=str(images), image_size=71)
    state, report = set_up(config).init()
    assert report == f'starting from {weights}; randomly initialised: logits'
    before, after = xception_flax.load(weights).variables, state.variables('live')
    assert after['params'].pop('logits')['kernel'].shape == (2048, 2)
    del before['params']['logits']
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize('weights', ['none.h5', 'keras/exception', 'README.md'])
def test_wrong_weights_are_told_before_the_data_is_opened(weights, program, tmp_path):
    output = program(
        '-m', 'xception_flax.main', '--config=configs/finetune.py', f'--workdir={tmp_path}/run',
        f'--config.init.weights={weights}', '--config.dataset.data_dir=/nowhere', status=1,
    )  # fmt: skip
    assert weights in output
    assert 'nowhere' not in output
    assert output.count('\n') == 1


@pytest.mark.slow
def test_a_finetuned_run_keeps_a_frozen_trunk(weights, images, program, tmp_path):
    output = program(
        '-m', 'xception_flax.main', '--config=configs/finetune.py', f'--workdir={tmp_path}/run',
        f'--config.init.weights={weights}', f'--config.dataset.data_dir={images}',
        '--config.frozen=trunk', '--config.image_size=71', '--config.batch_size=2',
        '--config.total_steps=2', '--config.log_steps=1', '--config.ema_decay=0',
    )  # fmt: skip
    assert f'starting from {weights}; randomly initialised: logits' in output
    before = xception_flax.load(weights).variables
    after = xception_flax.load(tmp_path / 'run').variables
    np.testing.assert_array_equal(
        after['params']['exit_flow']['sepconv4']['pointwise']['kernel'],
        before['params']['exit_flow']['sepconv4']['pointwise']['kernel'],
    )
    assert after['params']['logits']['kernel'].shape == (2048, 2)
