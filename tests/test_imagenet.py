"""`configs/imagenet.py` on an `imagenet2012` that TFDS's own builder makes from small tars."""

import io
import re
import shutil
import tarfile

import cv2
import jax
import numpy as np
import pytest
from helpers import default_config, entries, weights

from xception_flax.base.errors import UserError
from xception_flax.data import sources

SYNSETS = ('n01440764', 'n02123045', 'n04285008')
TFDS = ('-m', 'tensorflow_datasets.scripts.cli.main')  # the command `tfds`
TRAIN, VALIDATION = 5, 7  # images per synset; in all


def jpeg(rng) -> bytes:
    height, width = rng.integers(60, 120, 2)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (int(width), int(height)))
    return cv2.imencode('.jpg', image)[1].tobytes()


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
            with tarfile.open(fileobj=inner, mode='w') as images:
                for i in range(TRAIN):
                    add(images, f'{synset}_{i}.JPEG', jpeg(rng))
            add(tar, f'{synset}.tar', inner.getvalue())
    with tarfile.open(manual / 'ILSVRC2012_img_val.tar', 'w') as tar:
        for i in range(1, VALIDATION + 1):
            add(tar, f'ILSVRC2012_val_{i:08d}.JPEG', jpeg(rng))
    program(*TFDS, 'build', 'imagenet2012', f'--data_dir={root}', '--file_format=array_record')
    return root


@pytest.fixture
def config(data_dir):
    return default_config(dataset__name='imagenet2012', dataset__data_dir=str(data_dir))


def in_place(data_dir, tmp_path):
    """The settings that read a copy of any kind."""
    return default_config(
        dataset__source='imagenet',
        dataset__data_dir=str(data_dir),
        dataset__index=str(tmp_path / 'index'),
    )


def test_the_built_set_has_the_classes_and_labels_of_imagenet(config):
    train, validation = (sources.load(config, split) for split in ('train', 'validation'))
    assert (len(train), len(validation)) == (len(SYNSETS) * TRAIN, VALIDATION)
    assert train.num_classes == 1000
    seen = {train.class_names[train[i]['label']] for i in range(len(train))}
    assert seen == set(SYNSETS)
    assert isinstance(train[0]['image'], bytes)
    assert '_' in train.name(0)
    # The first validation labels as ImageNet's own list has them.
    names = {validation.name(i).split('val_')[1]: i for i in range(VALIDATION)}
    first = validation[names['00000001.JPEG']]['label']
    assert validation.class_names[first] == 'n01751748'


def test_the_built_set_is_read_as_the_tars_are(data_dir, tmp_path):
    for split in ('train', 'validation'):
        built = sources.load(in_place(data_dir, tmp_path), split)
        tars = sources.load(in_place(data_dir / 'downloads' / 'manual', tmp_path), split)
        same_records(built, tars)


def same_records(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for i in range(len(ours)):
        assert ours[i] == theirs[i]
        assert ours.name(i).rpartition('/')[2] == theirs.name(i).rpartition('/')[2]
    assert list(ours.class_names) == list(theirs.class_names)


def test_a_missing_split_is_an_error(config):
    with pytest.raises(UserError, match=r"no split 'test'; choose from \['train', 'validation'\]"):
        sources.load(config, 'test')


def converting_command(config):
    """The command in the error for a set that is not in ArrayRecord format."""
    with pytest.raises(UserError, match='is not in ArrayRecord format') as caught:
        sources.load(config, 'train')
    return re.search(r'tfds (convert_format \S+ \S+)', str(caught.value))[1].split()


def test_the_error_for_a_tfrecord_set_has_the_command_that_converts_it(config, data_dir, tmp_path):
    shutil.copytree(data_dir / 'imagenet2012', tmp_path / 'imagenet2012')
    (info,) = tmp_path.rglob('dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    config.dataset.data_dir = str(tmp_path)
    assert converting_command(config) == [
        'convert_format', f'--dataset_version_dir={info.parent}', '--out_file_format=array_record',
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_converts_a_tfrecord_set(config, data_dir, program, tmp_path):
    (tmp_path / 'downloads').symlink_to(data_dir / 'downloads')
    program(*TFDS, 'build', 'imagenet2012', f'--data_dir={tmp_path}')
    in_records, in_tars = (
        sources.load(in_place(folder, tmp_path), 'train')
        for folder in (tmp_path, tmp_path / 'downloads' / 'manual')
    )
    same_records(in_records, in_tars)
    config.dataset.data_dir = str(tmp_path)
    program(*TFDS, *converting_command(config))
    train = sources.load(config, 'train')
    assert len(train) == len(SYNSETS) * TRAIN
    assert train[0]['image'].startswith(b'\xff\xd8')


@pytest.mark.slow
def test_the_config_of_the_paper_trains_evaluates_and_resumes(data_dir, program, tmp_path):
    # A TensorFlow that fails when it is imported: nothing that trains may need it.
    (tmp_path / 'no_tensorflow' / 'tensorflow').mkdir(parents=True)
    trap = tmp_path / 'no_tensorflow' / 'tensorflow' / '__init__.py'
    trap.write_text('raise ImportError("imported while training")')
    args = (
        '-m', 'xception_flax.main', '--config=configs/imagenet.py',
        f'--config.dataset.data_dir={data_dir}', '--config.batch_size=2',
        f'--workdir={tmp_path}/run',
    )  # fmt: skip
    path = str(tmp_path / 'no_tensorflow')
    output = program(*args, '--config.total_steps=2', devices=1, fresh=True, PYTHONPATH=path)
    assert '22,855,952 trainable parameters, images of 299x299, bfloat16' in output
    assert '15 train and 7 validation examples, 1000 classes' in output
    output = program(*args, '--config.total_steps=3', devices=1)
    assert 'resuming from the checkpoint of step 2' in output

    found = entries(tmp_path / 'run')
    evaluations = [(e['step'], e['weights'], e['examples']) for e in found if 'weights' in e]
    assert evaluations == [(s, w, VALIDATION) for s in (2, 3) for w in ('live', 'averaged')]
    assert all(0 < e['loss'] < 50 for e in found)
    assert found[0]['learning_rate'] == pytest.approx(0.045)


@pytest.mark.slow
def test_a_training_from_the_tars_has_the_same_bits(data_dir, program, tmp_path):
    runs = []
    for copy in (data_dir, data_dir / 'downloads' / 'manual'):
        workdir = tmp_path / f'run{len(runs)}'
        program(
            '-m', 'xception_flax.main', '--config=configs/imagenet.py',
            f'--config.dataset.data_dir={copy}', '--config.batch_size=2', '--config.total_steps=3',
            '--config.xception.width=0.05', '--config.xception.middle_repeats=0',
            '--config.image_size=71', f'--config.dataset.index={tmp_path}/index',
            f'--workdir={workdir}', devices=1,
        )  # fmt: skip
        runs.append(weights(workdir))
    for ours, theirs in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(ours, theirs)
