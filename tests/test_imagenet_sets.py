"""Test sets with the classes of ImageNet, and Open Images, built by TFDS from little data."""

import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Program, default_config

from experiments.faults.store import free_port
from xception_flax.base import mesh as meshes
from xception_flax.base.errors import UserError
from xception_flax.data import imagenet_sets, images, sources
from xception_flax.data.reader import Reader, read
from xception_flax.data.scaling import scale
from xception_flax.inference.classes import imagenet_classes
from xception_flax.models import build_model
from xception_flax.runtime import workdirs
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints, TrainState
from xception_flax.runtime.progress import Progress
from xception_flax.training import evaluation

MESH = meshes.make_mesh()
SETS = {  # with the number of images
    'imagenet_a': ('test', 2),
    'imagenet_r': ('test', 2),
    'imagenet_v2/matched-frequency': ('test', 4),
    'imagenet_sketch': ('test', 6),
    'imagenet2012_corrupted/contrast_5': ('validation', 6),
    'imagenet2012_real': ('validation', 6),
}
REAL = {1: {65}, 2: {970, 795}, 3: set(), 4: {809}, 5: {516}, 6: set()}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory, program):
    root = tmp_path_factory.mktemp('tfds')
    program('tests/make_test_sets.py', str(root))
    return root


def settings(data_dir, name='imagenet2012', **dataset):
    c = default_config(
        model='lenet5', image_size=32, batch_size=4, total_steps=1, ema_decay=0.0,
        dataset__name=name, dataset__data_dir=str(data_dir),
    )  # fmt: skip
    c.dataset.update(dataset)
    return c


class Linear(nn.Module):
    """A classifier of small images that needs no time."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(nn.avg_pool(x, (4, 4), (4, 4)).reshape(len(x), -1))


@functools.cache
def untrained(classes):
    model = Linear(classes)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)


def evaluate(c, split='validation'):
    """The results of `evaluate`; the logits `[N, C]` and the labels of all images."""
    source = sources.load(c, split)
    model, variables = untrained(source.num_classes)
    if imagenet_sets.is_cropped(c.dataset.name):
        c.crop_fraction = 1.0
    task = evaluation.task_of(c, source)
    step = evaluation.compiled_step(model, c, MESH, task)
    found = evaluation.evaluate(
        step, {'live': variables}, Reader(source, 0), c, MESH, Progress(0, False), task
    )
    prepared, labels = [], []
    for i in range(len(source)):
        image, record = read(source, i)
        prepared.append(images.for_evaluation(image, c))
        labels.append(record['label'])
    logits = model.apply(variables, scale(np.stack(prepared), 'tf'), train=False)
    return found['live'], np.asarray(logits), labels


@pytest.mark.parametrize('name', ['imagenet_v2/matched-frequency', 'imagenet_sketch'])
def test_sets_of_all_classes_are_measured_as_imagenet_is(data_dir, name):
    split, count = SETS[name]
    found, logits, labels = evaluate(settings(data_dir, name), split)
    assert found['examples'] == count
    assert set(found) == {'top1', 'top5', 'loss', 'examples'}
    log_probabilities = jax.nn.log_softmax(logits)[np.arange(count), np.array(labels)]
    assert found['loss'] == pytest.approx(-float(log_probabilities.mean()), rel=1e-5)


def test_corrupted_images_are_taken_as_they_are(data_dir):
    name = 'imagenet2012_corrupted/contrast_5'
    found, logits, labels = evaluate(settings(data_dir, name))
    assert found['examples'] == SETS[name][1]
    log_probabilities = jax.nn.log_softmax(logits)[np.arange(6), np.array(labels)]
    assert found['loss'] == pytest.approx(-float(log_probabilities.mean()), rel=1e-5)
    source = sources.load(settings(data_dir, name), 'validation')
    assert {read(source, i)[0].shape for i in range(6)} == {(224, 224, 3)}
    assert imagenet_sets.is_cropped(name)
    assert not imagenet_sets.is_cropped('imagenet2012')


@pytest.mark.parametrize('name', ['imagenet_a', 'imagenet_r'])
def test_sets_of_200_classes_are_measured_among_all_and_among_these(data_dir, name):
    found, logits, labels = evaluate(settings(data_dir, name), 'test')
    subset = list(imagenet_sets.classes(name))
    among = np.array(subset)[np.argsort(-logits[:, subset], 1)]
    everywhere = np.argsort(-logits, 1)
    for k in (1, 5):
        right = [label in row for label, row in zip(labels, among[:, :k], strict=True)]
        assert found[f'top{k}_subset'] == np.mean(right)
        right = [label in row for label, row in zip(labels, everywhere[:, :k], strict=True)]
        assert found[f'top{k}'] == np.mean(right)


def test_the_subsets_are_the_authors(data_dir):
    for name, some in (
        # Of the authors' lists; ImageNet-A's ends with the fruits and fungi.
        ('imagenet_a', {'n01498041', 'n12267677', 'n09472597'}),
        ('imagenet_r', {'n01443537', 'n12267677', 'n10565667', 'n09835506'}),
    ):
        wnids = list(imagenet_classes())
        subset = imagenet_sets.classes(name)
        assert len(set(subset)) == 200
        assert some <= {wnids[i] for i in subset}
        source = sources.load(settings(data_dir, name), 'test')
        assert {source[i]['label'] for i in range(len(source))} <= set(subset)
    assert imagenet_sets.classes('imagenet_v2/topimages') == ()


def test_real_counts_any_label_of_an_image_and_leaves_out_images_without(data_dir):
    c = settings(data_dir, 'imagenet2012_real')
    found, logits, labels = evaluate(c)
    source = sources.load(c, 'validation')
    by_number = {int(source.name(i)[-13:-5]): labels[i] for i in range(6)}
    assert {n: set(np.flatnonzero(row).tolist()) for n, row in by_number.items()} == REAL
    labelled = [i for i in range(6) if labels[i].any()]
    assert found['examples'] == 4
    assert found['unlabelled'] == 2
    for k in (1, 5):
        best = np.argsort(-logits, 1)[:, :k]
        assert found[f'top{k}'] == np.mean([labels[i][best[i]].any() for i in labelled])
    targets = np.stack([labels[i] / labels[i].sum() for i in labelled])
    expected = -(targets * np.asarray(jax.nn.log_softmax(logits[labelled]))).sum(1).mean()
    assert found['loss'] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_label_feature_is_an_error(data_dir):
    with pytest.raises(UserError, match=r"has no 'lable' but \['real_label'\]"):
        sources.load(settings(data_dir, 'imagenet2012_real', label='lable'), 'validation')


@pytest.mark.parametrize(
    ('settings_', 'classes', 'expected'),
    [
        # Images 0 to 2 of an archive have: the first class surely, surely not, surely; and the
        # second with .6, .7 and .8.
        ({}, 7186, [{0, 1}, {1}, {0, 1}]),
        ({'confidence': 0.7}, 7186, [{0}, {1}, {0, 1}]),
        ({'confidence': 1.0}, 7186, [{0}, set(), {0}]),
        ({'label': 'objects'}, 19995, [{0, 1}, {1}, {0, 1}]),
    ],
)
def test_open_images_are_multi_label(data_dir, settings_, classes, expected):
    source = sources.load(settings(data_dir, 'open_images_v4/200k', **settings_), 'train')
    assert len(source) == 16 * 3
    assert source.num_classes == classes
    known = sources.load(settings(data_dir, 'open_images_v4/200k'), 'train').class_names[:2]
    numbers = {source.class_names.index(name): i for i, name in enumerate(known)}
    for i in range(len(source)):
        number = int(source.name(i).split()[1].removesuffix('.jpg')[1:], 16)
        present = np.flatnonzero(source[i]['label']).tolist()
        assert {numbers[c] for c in present} == expected[number]


def test_map_is_measured_on_open_images_with_its_class_weights(data_dir, tmp_path):
    c = settings(data_dir, 'open_images_v4/200k')
    c.loss = 'sigmoid'
    source = sources.load(c, 'test')
    name = source.class_names[1]
    (tmp_path / 'weights.json').write_text(json.dumps({name: 3.5}))
    c.dataset.class_weights = str(tmp_path / 'weights.json')
    found, logits, _ = evaluate(c, 'test')
    # Each of the three images has the only class that weighs anything; and 100 are looked at.
    order = np.argsort(-logits, 1)
    ranks = [order[i].tolist().index(1) for i in range(3)]
    hits = [rank < 100 for rank in ranks]
    by_image = [
        np.sum([source[i]['label'][c] for c in order[i, : r + 1]]) / (r + 1) if hit else 0
        for i, (r, hit) in enumerate(zip(ranks, hits, strict=True))
    ]
    assert found['map100_pictures'] == pytest.approx(np.mean(by_image), rel=1e-5)
    assert found['map100_classes'] == pytest.approx(sum(hits) / 3, rel=1e-9)
    assert found['examples'] == 3


def test_ten_crops_average_probabilities(data_dir):
    c = settings(data_dir)
    source = sources.load(c, 'validation')
    model, variables = untrained(1000)
    means = []
    for i in range(len(source)):
        crops = images.ten_crops(read(source, i)[0], c)
        logits = model.apply(variables, scale(crops, 'tf'), train=False)
        means.append(jax.nn.softmax(logits).mean(0))
    labels = [source[i]['label'] for i in range(len(source))]
    c.crops = 10
    found, _, _ = evaluate(c)
    expected = -np.mean([np.log(mean[label]) for mean, label in zip(means, labels, strict=True)])
    assert found['loss'] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope='module')
def workdir(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    c = settings(data_dir, num_classes=1000)
    init = jax.jit(
        functools.partial(build_model(c, 1000).init, train=False),
        compiler_options={'xla_backend_optimization_level': 0},
    )
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = jax.random.key_data(jax.random.key(0))
    checkpoints = Checkpoints(folder, 1, 0, {})
    state = TrainState(jnp.int32(1), variables['params'], {}, (), None, rng)
    checkpoints.save(Checkpoint(state, 0, 1, 0.0, 0, 0))
    checkpoints.close()
    workdirs.write_settings(folder, c, [])
    return folder


def test_a_list_of_images_is_left_out(workdir, program, tmp_path):
    (tmp_path / 'blacklist.txt').write_text('2\nILSVRC2012_val_00000004.JPEG\n\n60000\n')
    args = ('-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--crops=10')
    output = program(*args, f'--exclude={tmp_path}/blacklist.txt', devices=1)
    assert '2 of 6 images are excluded' in output
    assert "blacklist.txt: there is no image '60000'" in output
    assert '(4 examples)' in output


def test_two_processes_measure_the_same_as_one(workdir, data_dir, program):
    args = (
        '-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--config=configs/imagenet.py',
        '--config.dataset.source=tfds', '--config.dataset.name=imagenet2012_real',
        f'--config.dataset.data_dir={data_dir}',
        '--config.image_size=32', '--config.batch_size=4',
    )  # fmt: skip
    alone = program(*args, devices=2)
    assert re.search(r'MAP@100 over images 0\.\d{4}  MAP@100 over classes 0\.\d{4}', alone)
    group = (*args, f'--coordinator=localhost:{free_port()}', '--processes=2')
    pair = [Program(*group, f'--process={i}', devices=1) for i in range(2)]
    outputs = [run.end() for run in pair]
    (line,) = re.findall('validation, live weights: .*', alone)
    assert line in outputs[0]
