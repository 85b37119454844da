"""`configs/imagenet.py` on an `imagenet2012` that TFDS's own builder makes from small tars."""

import io
import json
import re
import tarfile

import cv2
import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.data import sources
from xception_flax.runtime.errors import UserError

SYNSETS = ('n01440764', 'n02123045', 'n04285008')
TFDS = ('-m', 'tensorflow_datasets.scripts.cli.main')  # the command `tfds`
TRAIN, VALIDATION = 5, 7  # pictures per synset; in all


def jpeg(rng) -> bytes:
    height, width = rng.integers(60, 120, 2)
    picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (int(width), int(height)))
    return cv2.imencode('.jpg', picture)[1].tobytes()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory, program):
    """Builds the data set as the README says."""
    root = tmp_path_factory.mktemp('tfds')
    manual = root / 'downloads' / 'manual'
    manual.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(manual / 'ILSVRC2012_img_train.tar', 'w') as tar:
        for synset in SYNSETS:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode='w') as pictures:
                for i in range(TRAIN):
                    add(pictures, f'{synset}_{i}.JPEG', jpeg(rng))
            add(tar, f'{synset}.tar', inner.getvalue())
    with tarfile.open(manual / 'ILSVRC2012_img_val.tar', 'w') as tar:
        for i in range(1, VALIDATION + 1):
            add(tar, f'ILSVRC2012_val_{i:08d}.JPEG', jpeg(rng))
    program(*TFDS, 'build', 'imagenet2012', f'--data_dir={root}', '--file_format=array_record')
    return root


@pytest.fixture
def config(data_dir):
    c = configs.default()
    c.dataset.name = 'imagenet2012'
    c.dataset.data_dir = str(data_dir)
    return c


def test_the_built_set_has_imagenets_classes_and_labels(config):
    train, validation = (sources.load(config, split) for split in ('train', 'validation'))
    assert (len(train), len(validation)) == (len(SYNSETS) * TRAIN, VALIDATION)
    assert train.num_classes == 1000
    seen = {train.class_names[train[i]['label']] for i in range(len(train))}
    assert seen == set(SYNSETS)
    assert isinstance(train[0]['picture'], bytes)
    assert '_' in train.name(0)
    # The first validation labels as ImageNet's own list has them.
    names = {validation.name(i).split('val_')[1]: i for i in range(VALIDATION)}
    first = validation[names['00000001.JPEG']]['label']
    assert validation.class_names[first] == 'n01751748'


def test_a_split_that_is_not_there_is_told(config):
    with pytest.raises(UserError, match=r"no split 'test'; choose from \['train', 'validation'\]"):
        sources.load(config, 'test')


def test_a_tfrecord_set_is_converted_by_the_command_that_the_error_names(
    config, data_dir, program, tmp_path
):
    (tmp_path / 'downloads').symlink_to(data_dir / 'downloads')
    program(*TFDS, 'build', 'imagenet2012', f'--data_dir={tmp_path}')
    config.dataset.data_dir = str(tmp_path)
    with pytest.raises(UserError, match='is not in ArrayRecord format') as caught:
        sources.load(config, 'train')
    command = re.search(r'tfds (convert_format \S+ \S+)', str(caught.value))[1]
    program(*TFDS, *command.split())
    train = sources.load(config, 'train')
    assert len(train) == len(SYNSETS) * TRAIN
    assert train[0]['picture'].startswith(b'\xff\xd8')


def test_the_papers_config_trains_evaluates_and_resumes(data_dir, program, tmp_path):
    # A TensorFlow that fails when it is imported: nothing that trains may need it.
    (tmp_path / 'no_tensorflow' / 'tensorflow').mkdir(parents=True)
    trap = tmp_path / 'no_tensorflow' / 'tensorflow' / '__init__.py'
    trap.write_text('raise ImportError("imported while training")')
    args = (
        '-m', 'xception_flax.main', '--config=configs/imagenet.py',
        f'--config.dataset.data_dir={data_dir}', '--config.batch_size=2',
        f'--workdir={tmp_path}/run',
    )  # fmt: skip
    env = {'PYTHONPATH': str(tmp_path / 'no_tensorflow'), 'JAX_NUM_CPU_DEVICES': '1'}
    output = program(*args, '--config.total_steps=2', **env)
    assert '22,855,952 trainable parameters, pictures of 299x299, bfloat16' in output
    assert '15 train and 7 validation examples, 1000 classes' in output
    output = program(*args, '--config.total_steps=3', **env)
    assert 'going on from the checkpoint of step 2' in output

    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    found = [json.loads(line) for line in lines]
    evaluations = [(r['step'], r['weights'], r['examples']) for r in found if 'weights' in r]
    assert evaluations == [(s, w, VALIDATION) for s in (2, 3) for w in ('live', 'averaged')]
    assert all(0 < r['loss'] < 50 for r in found)
    assert found[0]['learning_rate'] == pytest.approx(0.045)
