"""Whole runs on real data, as a user starts them."""

import json

import cv2
import jax
import numpy as np
import pytest

import xception_flax
from xception_flax.data import sources

DIGITS = (
    '-m', 'xception_flax.main', '--config=configs/digits.py', '--config.total_steps=24',
    '--config.eval_steps=8', '--config.log_steps=1', '--config.batch_size=64',
    '--config.xception.middle_repeats=1', '--config.profile_steps=3',
)  # fmt: skip


def records(workdir):
    """The lines of metrics.jsonl, less what depends on the clock."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        record.pop('examples_per_second', None)
    return found


def weights(workdir, step=None):
    _, averaged, _ = xception_flax.load_checkpoint(workdir, step)
    _, live, _ = xception_flax.load_checkpoint(workdir, step, 'live')
    return jax.device_get({'live': live, 'averaged': averaged})


@pytest.fixture(scope='module')
def finished(tmp_path_factory, program):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp('runs') / 'digits'
    return workdir, program(*DIGITS, f'--workdir={workdir}')


def test_a_run_leaves_its_numbers_its_curves_and_its_settings(finished):
    workdir, output = finished
    found = records(workdir)
    assert [r['step'] for r in found if r['split'] == 'train'] == list(range(1, 25))
    evaluations = [(r['step'], r['weights']) for r in found if r['split'] == 'test']
    assert evaluations == [(s, w) for s in (8, 16, 24) for w in ('live', 'averaged')]
    assert {r['examples'] for r in found if r['split'] == 'test'} == {360}
    assert {'loss', 'top1', 'learning_rate', 'gradient_norm'} <= set(found[0])
    assert cv2.imread(str(workdir / 'curves.png')).shape == (480, 1200, 3)
    config = json.loads((workdir / 'config.json').read_text())
    assert (config['total_steps'], config['total_epochs']) == (24, None)
    assert config['dataset']['num_classes'] == 10
    assert config['dataset']['num_examples'] == 1437
    assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == [8, 16, 24]
    assert list((workdir / 'tensorboard').glob('events*'))
    (trace,) = (workdir / 'tensorboard' / 'plugins' / 'profile').glob('*/*.xplane.pb')
    assert trace.stat().st_size > 10_000
    final = found[-1]
    assert f'final test accuracy: {final["top1"]:.4f}' in output
    assert str(workdir) in output
    assert '1,437 train and 360 test examples, 10 classes' in output


def test_a_finished_run_says_so_and_changes_nothing(finished, program):
    workdir, _ = finished
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    output = program(*DIGITS, f'--workdir={workdir}')
    assert 'this run is complete' in output
    assert 'final test accuracy' in output
    assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before


def test_what_was_reported_is_what_the_checkpoint_does(finished):
    workdir, _ = finished
    model, variables, config = xception_flax.load_checkpoint(workdir)
    source = sources.load(config, 'test')
    x = np.stack([cv2.resize(p, (16, 16), interpolation=cv2.INTER_LINEAR) for p in source.pictures])
    x = np.repeat(x[..., None], 3, -1) / 127.5 - 1
    top1 = np.mean(np.argmax(model.apply(variables, x, train=False), 1) == source.labels)
    assert top1 == pytest.approx(records(workdir)[-1]['top1'], abs=1e-6)


def test_evaluate_measures_on_another_split_by_another_config(finished, program):
    workdir, _ = finished
    output = program(
        '-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--config=configs/digits.py',
        '--config.dataset.eval_split=train', '--config.xception.residual=False',
    )  # fmt: skip
    assert output.count('(1,437 examples)') == 2


def test_evaluate_measures_the_same(finished, program):
    workdir, _ = finished
    output = program('-m', 'xception_flax.evaluate', f'--workdir={workdir}', '--step=16')
    for record in records(workdir):
        if record['step'] == 16 and 'weights' in record:
            assert f'{record["weights"]} weights: top-1 {record["top1"]:.4f}' in output


def test_what_was_compiled_is_kept_beside_the_workdir(finished, program):
    workdir, _ = finished
    program(
        '-m', 'xception_flax.evaluate', f'--workdir={workdir}', JAX_COMPILATION_CACHE_DIR=None
    )  # fmt: skip
    assert any((workdir.parent / '.compiled').iterdir())


def test_a_folder_of_class_folders_trains(program, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 5)):
        for label in range(10):  # ten classes of ten colours
            folder = tmp_path / 'data' / split / str(label)
            folder.mkdir(parents=True)
            colour = cv2.cvtColor(np.uint8([[[18 * label, 255, 200]]]), cv2.COLOR_HSV2BGR)
            for i in range(count):
                picture = colour * rng.uniform(0.7, 1, (40 + i, 50, 1))
                file = folder / f'{i}.{("jpg", "png")[i % 2]}'
                cv2.imwrite(str(file), picture.astype(np.uint8))
    output = program(
        *DIGITS, '--config.dataset.source=folder', f'--config.dataset.data_dir={tmp_path}/data',
        '--config.dataset.eval_split=val', '--config.augment.crop=inception',
        '--config.eval_steps=24', f'--workdir={tmp_path}/run',
    )  # fmt: skip
    assert '120 train and 50 val examples, 10 classes' in output
    found = records(tmp_path / 'run')
    assert [r['examples'] for r in found if 'weights' in r] == [50, 50]
    # In so few steps the running statistics do not get there; the batch's own do.
    assert max(r['top1'] for r in found if r['split'] == 'train') > 0.9  # chance: 0.1


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['--config.batch_size=100'], 'cannot be divided over 8 devices'),
        (['--config.dataset.num_classes=1000'], 'the data has 10 classes'),
        (['--config.image_size=4'], 'config.image_size is 4, too small'),
        (['--config.dataset.eval_split=validation'], "digits has no split 'validation'"),
    ],
)
def test_mistakes_end_in_one_line_before_any_work(program, tmp_path, args, says):
    workdir = tmp_path / 'run'
    output = program(*DIGITS, *args, f'--workdir={workdir}', devices=8, status=1)
    assert says in output
    assert output.startswith('error: ')
    assert output.count('\n') == 1
    assert not workdir.exists()


def test_a_missing_flag_is_told(program):
    assert '--workdir is missing' in program(*DIGITS, status=1)
    assert '--config is missing' in program(*DIGITS[:2], '--workdir=/tmp/nothing', status=1)


def test_help_shows_how_to_use_it(program):
    output = program('-m', 'xception_flax.main', '--help', status=1)
    assert '--config=configs/digits.py --workdir=/tmp/digits' in output
    assert '--config:' in output
    assert '--workdir:' in output
