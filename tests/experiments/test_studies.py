"""The definitions of the studies."""

import json

import pytest
from helpers import ROOT

from experiments import studies
from experiments.studies import settings, study, trials
from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.models import build_model, counts
from xception_flax.training import metrics
from xception_flax.training.checks import check_values


@pytest.mark.parametrize('name', studies.STUDIES)
def test_a_study_names_existing_files_settings_metrics_and_variants(name):
    one = studies.lookup(name)
    names = [variant.name for variant in one.variants]
    assert len(set(names)) == len(names)
    for variant in one.variants:
        assert (ROOT / variant.file).is_file(), variant.file
        check_values(settings.read(variant.file, variant.overrides))
    for figure in one.figures:
        assert set(figure.series) <= set(names)
    assert set(one.metrics) <= {metric.name for metric in metrics.METRICS}


def test_studies_on_imagenet_may_share_a_workdir():
    found = {}
    for one in (studies.IMAGENET, studies.RESIDUAL, studies.ACTIVATION, studies.BATCH_LR):
        for variant in one.variants:
            assert found.setdefault(variant.name, variant) == variant
    assert found['xception'].file == 'configs/imagenet.py'


def test_networks_on_fashion_mnist_have_one_size_and_one_recipe():
    configs, parameters = {}, {}
    for variant in studies.FASHION_MNIST.variants:
        config = settings.read(variant.file, variant.overrides)
        network = counts.summarise(build_model(config, 10), config.image_size)
        configs[variant.name], parameters[variant.name] = config, network.parameters
        assert len(variant.seeds) == 3
    assert parameters == {
        'xception': 210_330,
        'inception_v3': 211_226,  # 0.4 % more
        'no_residual': 195_082,  # its projections are gone
        'elu': 210_330,
        'relu': 210_330,
    }
    for name, config in configs.items():
        for key, value in config.items():
            if key not in ('model', 'xception', 'inception_v3'):
                assert value == configs['xception'][key], (name, key)
    ours, theirs = configs['xception'].xception, configs['inception_v3'].inception_v3
    for option in ('dropout', 'bn_momentum', 'bn_epsilon', 'stem'):
        assert ours[option] == theirs[option]


def test_a_grid_has_every_combination():
    axes = {'batch_size': (64, 128), 'optimizer.momentum': (0.8, 0.9)}
    found = study.grid('configs/digits.py', axes, (0, 1), {'total_epochs': 2.0})
    assert [v.name for v in found] == [
        f'batch_size_{b}-momentum_{m}' for b in (64, 128) for m in (0.8, 0.9)
    ]
    assert found[1].overrides == {
        'total_epochs': 2.0, 'batch_size': 64, 'optimizer.momentum': 0.9,
    }  # fmt: skip


def test_a_seed_comes_for_all_variants_before_the_next_seed(tmp_path):
    names = [trial.name for trial in trials.trials(studies.FASHION_MNIST, tmp_path)]
    assert names[:6] == [
        'xception/seed0', 'inception_v3/seed0', 'no_residual/seed0', 'elu/seed0', 'relu/seed0',
        'xception/seed1',
    ]  # fmt: skip
    assert len(names) == 15
    (trial, *_) = trials.trials(studies.FASHION_MNIST, tmp_path, (7,), {'total_epochs': 1.0})
    assert trial.name == 'xception/seed7'
    assert trial.command[-1] == f'--workdir={tmp_path}/xception/seed7'
    assert {'--config.total_epochs=1.0', '--config.seed=7'} <= set(trial.command)
    assert (trial.config.seed, trial.config.total_epochs) == (7, 1.0)


def test_settings_are_read_from_text():
    found = settings.assignments(['a=1', 'b=(1, 2)', 'c=0.5', 'd=True', 'e=/data/x', 'f=test'])
    assert found == {'a': 1, 'b': (1, 2), 'c': 0.5, 'd': True, 'e': '/data/x', 'f': 'test'}
    assert settings.axes(['a=1,2', 'b=relu,elu', 'c=(1,2),()']) == {
        'a': [1, 2], 'b': ['relu', 'elu'], 'c': [(1, 2), ()],
    }  # fmt: skip


@pytest.mark.parametrize(
    ('overrides', 'says'),
    [
        ({'batch_sise': 1}, 'did you mean config.batch_size'),
        ({'batch_size': 'many'}, "config.batch_size takes int, not 'many'"),
    ],
)
def test_impossible_settings_are_reported(overrides, says):
    with pytest.raises(UserError, match=says):
        settings.read('configs/digits.py', overrides)


def test_an_overridden_duration_unsets_its_other_units():
    config = settings.read('configs/digits.py', {'total_steps': 10})
    assert (config.total_steps, config.total_epochs) == (10, None)


def test_an_unknown_study_is_reported():
    with pytest.raises(UserError, match="no study 'fashion'; did you mean 'fashion_mnist'"):
        studies.lookup('fashion')
    with pytest.raises(UserError, match='is not PATH=VALUE'):
        settings.assignments(['batch_size'])


def test_a_run_that_ended_for_want_of_patience_is_done(tmp_path):
    (trial, *_) = trials.trials(studies.FASHION_MNIST, tmp_path, (0,), {'patience': 2})
    trial.config.dataset.num_classes, trial.config.dataset.num_examples = 10, 60_000
    (trial.workdir / 'checkpoints' / '40').mkdir(parents=True)
    (trial.workdir / 'config.json').write_text(reading.to_json(trial.config))
    scores = {10: 0.5, 20: 0.7, 30: 0.6, 40: 0.7}
    lines = [
        json.dumps({'step': step, 'weights': 'averaged', 'top1': top1}) + '\n'
        for step, top1 in scores.items()
    ]
    (trial.workdir / 'metrics.jsonl').write_text(''.join(lines[:3]))
    assert not trial.standing().done
    (trial.workdir / 'metrics.jsonl').write_text(''.join(lines))
    standing = trial.standing()
    assert standing.done
    assert standing.results['top1'] == 0.7
    assert standing.fraction == 1
