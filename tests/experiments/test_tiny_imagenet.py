"""What measures Tiny ImageNet's published validation images, on a set of the same layout."""

import json

import cv2
import numpy as np
import pytest
from helpers import random_variables, small_config

from experiments.tiny_imagenet import validate
from xception_flax import Trained, load
from xception_flax.models import build_model

CLASSES = ('n01', 'n02', 'n03')
COUNT = 24
TWICE = 1801  # one of those that are left out


@pytest.fixture
def images(tmp_path):
    """The folder `val` with `COUNT` images and their table, two of which are left out."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'val'
    (folder / 'images').mkdir(parents=True)
    lines = []
    for number in (*range(COUNT - 2), TWICE, 9920):
        image = rng.integers(0, 256, (64, 64, 3), np.uint8)
        cv2.imwrite(str(folder / 'images' / f'val_{number}.JPEG'), image)
        lines.append(f'val_{number}.JPEG\t{CLASSES[number % 3]}\t0\t32\t44\t62\n')
    (folder / 'val_annotations.txt').write_text(''.join(lines))
    return folder


@pytest.fixture
def workdir(tmp_path):
    config = small_config(dataset__num_classes=3, dataset__source='folder', image_size=32)
    config.dataset.eval_split, config.dataset.eval_fraction = 'val', 0.1
    model = build_model(config, 3)
    Trained(model, random_variables(model, 32), config, CLASSES).save(tmp_path / 'run')
    return tmp_path / 'run'


def test_a_run_is_measured_once_on_all_images_but_those_of_both_splits(workdir, images):
    validate.measure(workdir, images)
    found = json.loads((workdir / 'held_out.json').read_text())
    assert found['examples'] == COUNT - 2
    files = sorted((images / 'images').iterdir())
    numbers = [int(file.stem.removeprefix('val_')) for file in files]
    right = [
        prediction.labels[0].index == number % 3
        for number, prediction in zip(numbers, load(workdir).predict(files), strict=True)
        if number not in validate.TWICE
    ]
    assert found['top1'] == pytest.approx(np.mean(right))
    (workdir / 'held_out.json').write_text('{"top1": 7}')
    validate.measure(workdir, images)
    assert json.loads((workdir / 'held_out.json').read_text()) == {'top1': 7}


def test_nothing_is_measured_before_all_runs_are_done(program, tmp_path, images):
    output = program(
        '-m', 'experiments.tiny_imagenet.validate', f'--workdir={tmp_path}/runs',
        f'--data={images.parent}', status=1,
    )  # fmt: skip
    assert output.startswith('error: 24 of 24 runs are not done: xception/seed0, ')
