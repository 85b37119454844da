"""Reports, against numbers computed by hand."""

import dataclasses
import json
import math
import re

import pytest
from helpers import small_config

from experiments import report, studies
from experiments.reporting import collect, figures, significance, tables
from experiments.reporting.page import Page
from experiments.studies import trials
from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.training import metrics

STUDY = studies.FASHION_MNIST
TOP1 = {'xception': (0.90, 0.92, 0.94), 'inception_v3': (0.89, 0.90, 0.94), 'elu': (0.95,)}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """Three, three, one and no finished runs of four networks, and unfinished ones of a fifth."""
    folder = tmp_path_factory.mktemp('runs')
    for trial in trials.trials(STUDY, folder):
        name, seed = trial.name.split('/seed')
        if name == 'no_residual' or int(seed) >= len(TOP1.get(name, '1')):
            continue
        trial.config.dataset.num_classes, trial.config.dataset.num_examples = 10, 60_000
        trial.workdir.mkdir(parents=True)
        (trial.workdir / 'config.json').write_text(reading.to_json(trial.config))
        steps = (469, 4688) if name in TOP1 else (469,)
        lines = [
            {'step': step, 'split': 'test', 'weights': weights, 'top1': top1, 'top5': 0.99}
            for step in steps
            for weights, top1 in (('live', 0.1), ('averaged', TOP1.get(name, (0.5,))[int(seed)]))
        ]
        (trial.workdir / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
    networks = {'xception': {'steps_per_second': 2.5, 'batch_size': 128, 'dtype': 'float32'}}
    speed = {'devices': '1 x cpu', 'jax': '1', 'rounds': 7, 'steps': 5, 'networks': networks}
    (folder / 'speed.json').write_text(json.dumps(speed))
    return folder


@pytest.fixture(scope='module')
def measured(workdir):
    return collect.of_study(STUDY, workdir)


def rows(table):
    return {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}


def test_results_are_means_and_deviations_of_finished_runs(measured):
    found = rows(tables.results(STUDY, measured))
    assert found['Xception'] == {
        'top-1, %': '92.00 ± 2.00', 'paper (ImageNet)': '79.00', 'top-5, %': '99.00 ± 0.00',
        'seeds': '3',
    }  # fmt: skip
    assert found['Inception V3']['top-1, %'] == '91.00 ± 2.65'  # sqrt((2² + 1² + 3²) / 2)
    assert found['Xception, ELU between']['top-1, %'] == '95.00'
    assert found['Xception, ELU between']['seeds'] == '1 of 3'
    assert found['Xception, ReLU between']['top-1, %'] == 'not done'
    assert found['Xception without residual connections'] == {
        'top-1, %': 'not run', 'paper (ImageNet)': '67.20', 'top-5, %': 'not run',
        'seeds': '0 of 3',
    }  # fmt: skip


def test_a_study_that_was_not_run_is_marked(tmp_path):
    measured = collect.of_study(STUDY, tmp_path)
    for row in tables.results(STUDY, measured).rows:
        assert (row[1], row[3], row[4]) == ('not run', 'not run', '0 of 3')
    for row in tables.comparisons(STUDY, measured).rows:
        assert row[1:6] == [*['not run'] * 4, tables.NO_NUMBER]
        assert row[-1] == 'not run'
    for row in tables.listing(STUDY, measured).rows:
        assert row[-1] == 'not run'


def test_networks_are_compared_as_independent_runs(measured):
    found = rows(tables.comparisons(STUDY, measured))
    # Variances of 4 and 7: standard error sqrt(11 / 3) = 1.915, 3.72 degrees of freedom, and their
    # quantile of Student's t is 2.86.
    assert found['Inception V3'] == {
        'top-1, points': '+1.00', '95 % interval': '-4.48 to +6.48', 'p': '0.63', 'p, Holm': '0.63',
        'seeds': '3 and 3', 'paper (ImageNet)': '+0.80', 'same sign?': 'undecided',
    }  # fmt: skip
    assert found['Xception, ELU between']['top-1, points'] == '-3.00'
    assert found['Xception, ELU between']['95 % interval'] == 'one seed'
    assert found['Xception, ReLU between']['top-1, points'] == 'not run'


def test_welch_agrees_with_r():
    """What R prints for `t.test(extra ~ group, data = sleep)`, Student's own data."""
    ours = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    theirs = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = significance.welch(ours, theirs)
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert found.seeds == (10, 10)


def test_equal_results_have_no_test():
    found = significance.welch([0.5, 0.5], [0.25, 0.25])
    assert (found.mean, found.low, found.high, found.seeds) == (0.25, 0.25, 0.25, (2, 2))
    assert math.isnan(found.p)


def test_holm_agrees_with_r():
    """The values of R's `p.adjust(p, 'holm')`."""
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = significance.holm([0.4, math.nan, 0.6])
    assert found[0::2] == pytest.approx([0.8, 0.8])
    assert math.isnan(found[1])


def test_agreement_needs_a_small_p():
    found = significance.Difference(0.01, 0.005, 0.015, 0.01, (3, 3))
    assert tables._agreement('top1', found, 0.04, 0.79, 0.78) == ['+1.00', 'yes']
    assert tables._agreement('top1', found, 0.04, 0.78, 0.79) == ['-1.00', 'no']
    assert tables._agreement('top1', found, 0.05, 0.78, 0.79) == ['-1.00', 'undecided']
    assert tables._agreement('top1', found, math.nan, 0.78, 0.79) == ['-1.00', 'undecided']
    assert tables._agreement('top1', None, math.nan, 0.78, 0.79) == ['-1.00', 'not run']


def test_costs_are_counted_and_speeds_are_read(measured, workdir):
    found = rows(tables.costs(STUDY, measured, collect.speed(workdir)))
    assert found['Xception'] == {
        'parameters': '210,330', 'multiply-adds': '4,055,352', 'training steps/s': '2.5',
        'images/s': '320',
    }  # fmt: skip
    assert found['Inception V3']['training steps/s'] == 'not run'


def test_both_readings_of_map_share_the_number_of_the_paper():
    assert tables.number('map100_classes', 6.7) == '6.7'
    study = studies.FC_LAYERS
    assert tables._paper(study, 'map100_classes') == tables._paper(study, 'map100_pictures')
    assert tables._paper(study, 'map100_classes')['open_images_fc'] == 6.78


def test_curves_are_of_the_averaged_weights_beside_those_of_the_paper(measured):
    axes = figures.draw(STUDY, STUDY.figures[0], measured).axes[0]
    assert [line.get_label() for line in axes.lines] == [
        'Xception (3 seeds)', 'Inception V3 (3 seeds)',
    ]  # fmt: skip
    expected = [[469, pytest.approx(0.92)], [4688, pytest.approx(0.92)]]
    assert axes.lines[0].get_xydata().tolist() == expected
    paper = figures.paper_curves('fig6')
    assert {name: len(points) for name, points in paper.items()} == {
        'xception': 56, 'inception_v3': 58,
    }  # fmt: skip
    as_imagenet = studies.PaperFigure(
        'Figure 9', 'fig9', {'xception': 'residual', 'no_residual': ''}
    )
    axes = figures.draw(STUDY, as_imagenet, measured).axes[0]
    dashed, ours, missing = axes.lines
    assert (dashed.get_label(), dashed.get_linestyle()) == ('Xception (paper, ImageNet)', '--')
    assert len(dashed.get_xdata()) == 57
    assert ours.get_label() == 'Xception (3 seeds)'
    assert missing.get_label() == 'Xception without residual connections: not run'
    assert len(missing.get_xdata()) == 0


def test_the_page_is_self_contained(workdir, tmp_path):
    page = Page('A <title>', 'Words.')
    report.add(page, 'fashion_mnist', str(workdir))
    report.add(page, str(workdir), None)  # the same as a folder, with only what is there
    page.save(tmp_path)
    text = (tmp_path / 'report.html').read_text()
    assert '<h1>A &lt;title&gt;</h1>' in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)|@import|<script', text)
    assert text.count('<svg') == 4
    assert figures.INK not in text  # the page's own colour instead
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert text.count('class="missing"') > 10
    markdown = (tmp_path / 'report.md').read_text()
    for image in re.findall(r'\]\((figures/[^)]+)\)', markdown):
        assert (tmp_path / image).is_file()
        assert (tmp_path / image).with_suffix('.svg').is_file()
    assert '| xception | 92.00 ± 2.00 | 99.00 ± 0.00 | 3 |' in markdown


def test_a_new_metric_is_reported_without_further_change(tmp_path, monkeypatch):
    error = dataclasses.replace(metrics.by_name('loss'), name='error', label='error rate')
    monkeypatch.setattr(metrics, 'METRICS', (*metrics.METRICS, error))
    values = {'a': ({'error': 0.25}, {'error': 0.125}), 'b': ({'error': 0.5}, {'error': 'nan'})}
    for name, evaluations in values.items():
        (tmp_path / name).mkdir()
        config = small_config(dataset__num_classes=10, dataset__num_examples=64, best='error')
        (tmp_path / name / 'config.json').write_text(reading.to_json(config))
        entries = [
            {'step': step, 'split': 'test', 'weights': 'live', 'top1': 0.5, **found}
            for step, found in zip((2, 4), evaluations, strict=True)
        ]
        (tmp_path / name / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    page = Page('', '')
    report.add(page, str(tmp_path), None)
    page.save(tmp_path / 'report')
    text = (tmp_path / 'report' / 'report.md').read_text()
    # The best checkpoint is chosen by it, so it comes first.
    assert '| network | error rate | top-1, % | seeds |' in text
    assert '| a | 0.125 | 50.00 | 1 |' in text
    assert '| b | nan | 50.00 | 1 |' in text
    no_number = tables.NO_NUMBER
    assert f'| b | nan | one seed | {no_number} | {no_number} | 1 and 1 |' in text  # a minus b
    measured = collect.of_folder(tmp_path)
    curves = studies.PaperFigure('Curves', '', {'a': '', 'b': ''})
    study = studies.Study('', tuple(one.variant for one in measured), collect.metrics(measured))
    axes = figures.draw(study, curves, measured).axes[0]
    assert (axes.get_ylabel(), axes.get_yscale()) == ('error rate', 'log')
    assert axes.lines[0].get_xydata().tolist() == [[2, 0.25], [4, 0.125]]


def test_missing_folders_and_studies_are_reported(tmp_path):
    page = Page('', '')
    with pytest.raises(UserError, match='there is no run in'):
        report.add(page, str(tmp_path), None)
    with pytest.raises(UserError, match='the study imagenet needs --workdir'):
        report.add(page, 'imagenet', None)
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        report.add(page, 'imagnet', None)
