"""What a new user does with weights that Keras has saved, as commands."""

import json

import cv2
import keras
import numpy as np
import pytest

import xception_flax
from xception_flax.data.pictures import for_evaluation

CLASSES = 4
RNG = np.random.default_rng(0)


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
def pictures(tmp_path_factory):
    """A folder for training: two classes of two colours."""
    root = tmp_path_factory.mktemp('pictures')
    for split in ('train', 'val'):
        for name, colour in (('red', (0, 0, 200)), ('blue', (200, 0, 0))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                picture = np.uint8(colour * RNG.uniform(0.5, 1, (90, 120, 1)))
                cv2.imwrite(str(folder / f'{i}.png'), picture)
    return root


def test_predict_says_what_keras_does(weights, theirs, pictures, program):
    picture = pictures / 'val' / 'red' / '0.png'
    output = program(
        '-m', 'xception_flax.predict', str(picture), f'--weights={weights}', '--json'
    )  # fmt: skip
    (line,) = [line for line in output.splitlines() if line.startswith('{')]
    labels = json.loads(line)['labels']
    _, _, config = xception_flax.load_pretrained(weights)
    pixels = for_evaluation(cv2.imread(str(picture))[..., ::-1], config)
    x = keras.applications.xception.preprocess_input(pixels[None].astype(np.float32))
    expected = theirs.predict(x, verbose=0)[0]
    found = {label['index']: label['probability'] for label in labels}
    np.testing.assert_allclose([found[i] for i in range(CLASSES)], expected, atol=1e-6)
    assert [label['index'] for label in labels] == list(np.argsort(-expected))


def test_describe_counts_its_parameters(weights, program):
    output = program('-m', 'xception_flax.describe', f'--weights={weights}')
    assert f'{22_855_952 - 2049 * (1000 - CLASSES):,}' in output


def test_convert_goes_to_a_workdir_to_timm_and_says_what_differs(weights, program, tmp_path):
    output = program('-m', 'xception_flax.convert', str(weights), str(tmp_path / 'run'))
    assert 'xception, 4 classes, 20,815,148 parameters' in output
    assert f'written to {tmp_path}/run' in output
    output = program(
        '-m', 'xception_flax.convert', str(tmp_path / 'run'), str(tmp_path / 'x.safetensors')
    )  # fmt: skip
    assert "note: timm's network has max pools of symmetric padding" in output
    _, first, _ = xception_flax.load_pretrained(weights)
    _, last, config = xception_flax.load_pretrained(tmp_path / 'x.safetensors')
    assert config.xception.variant == 'timm'
    np.testing.assert_array_equal(
        first['params']['middle_flow']['block8']['sepconv3']['pointwise']['kernel'],
        last['params']['middle_flow']['block8']['sepconv3']['pointwise']['kernel'],
    )
    output = program(
        '-m', 'xception_flax.convert', str(weights), str(tmp_path / 'run'), status=1
    )  # fmt: skip
    assert output == f'error: {tmp_path}/run is there already; remove it, or give another name\n'


def test_finetune_starts_from_it(weights, pictures, program, tmp_path):
    output = program(
        '-m', 'xception_flax.main', '--config=configs/finetune.py', f'--workdir={tmp_path}/run',
        f'--config.init.weights={weights}', f'--config.dataset.data_dir={pictures}',
        '--config.frozen=trunk', '--config.image_size=71', '--config.batch_size=2',
        '--config.total_steps=2', '--config.log_steps=1', '--config.ema_decay=0',
    )  # fmt: skip
    assert f'starting from {weights}' in output
    assert 'logits' in output
    _, before, _ = xception_flax.load_pretrained(weights)
    _, after, config = xception_flax.load_checkpoint(tmp_path / 'run')
    assert config.dataset.num_classes == 2
    np.testing.assert_array_equal(
        after['params']['exit_flow']['sepconv4']['pointwise']['kernel'],
        before['params']['exit_flow']['sepconv4']['pointwise']['kernel'],
    )
    assert after['params']['logits']['kernel'].shape == (2048, 2)
