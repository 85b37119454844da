"""Reports, against numbers computed by hand."""

import json
import math
import re

import pytest
from scipy import stats

from experiments import report, studies
from experiments.reporting import collect, figures, statistics, tables
from experiments.reporting.page import Page
from experiments.studies import runs
from xception_flax.config import reading
from xception_flax.runtime.errors import UserError

STUDY = studies.FASHION_MNIST
TOP1 = {'xception': (0.90, 0.92, 0.94), 'inception_v3': (0.89, 0.90, 0.94), 'elu': (0.95,)}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """Two networks with three seeds, one with one, and one that is under way; one has none."""
    folder = tmp_path_factory.mktemp('runs')
    for run in runs.runs(STUDY, folder):
        name, seed = run.name.split('/seed')
        if name == 'no_residual' or int(seed) >= len(TOP1.get(name, '1')):
            continue
        run.config.dataset.num_classes, run.config.dataset.num_examples = 10, 60_000
        run.workdir.mkdir(parents=True)
        (run.workdir / 'config.json').write_text(reading.to_json(run.config))
        steps = (469, 4688) if name in TOP1 else (469,)
        lines = [
            {'step': step, 'split': 'test', 'weights': weights, 'top1': top1, 'top5': 0.99}
            for step in steps
            for weights, top1 in (('live', 0.1), ('averaged', TOP1.get(name, (0.5,))[int(seed)]))
        ]
        (run.workdir / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
    networks = {'xception': {'steps_per_second': 2.5, 'batch_size': 128, 'dtype': 'float32'}}
    speed = {'devices': '1 x cpu', 'jax': '1', 'rounds': 7, 'steps': 5, 'networks': networks}
    (folder / 'speed.json').write_text(json.dumps(speed))
    return folder


def rows(table):
    return {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}


def test_results_are_means_and_deviations_of_what_is_through(workdir):
    found = rows(tables.results(STUDY, collect.of_study(STUDY, workdir)))
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


def test_nothing_of_a_study_that_was_not_run_is_the_papers(tmp_path):
    measured = collect.of_study(STUDY, tmp_path)
    for row in tables.results(STUDY, measured).rows:
        assert (row[1], row[3], row[4]) == ('not run', 'not run', '0 of 3')
    for row in tables.comparisons(STUDY, measured).rows:
        assert (row[1:6], row[-1]) == (['not run'] * 4 + ['0'], 'not run')
    for row in tables.listing(STUDY, measured).rows:
        assert row[-1] == 'not run'


def test_networks_are_compared_seed_by_seed(workdir):
    found = rows(tables.comparisons(STUDY, collect.of_study(STUDY, workdir)))
    # 1, 2 and 0 points: mean 1, deviation 1, and Student's t of 2 degrees of freedom is 4.303.
    assert found['Inception V3'] == {
        'top-1, points': '+1.00', '95 % interval': '-1.48 to +3.48', 't-test, p': '0.23',
        'permutation, p': '0.5', 'seeds': '3', 'paper (ImageNet)': '+0.80',
        'the same way?': 'undecided',
    }  # fmt: skip
    assert found['Xception, ELU between']['top-1, points'] == '-5.00'
    assert found['Xception, ELU between']['95 % interval'] == 'one seed'
    assert found['Xception, ReLU between']['top-1, points'] == 'not run'


def test_a_paired_test_is_scipys():
    ours, theirs = [0.3, 0.7, 0.5, 0.9], [0.1, 0.8, 0.2, 0.4]
    found = statistics.paired(ours, theirs)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    # Both are float64; what differs is rounding.
    assert found.t_test == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    exact = stats.permutation_test(
        (ours, theirs), lambda x, y: sum(x) - sum(y), permutation_type='samples', n_resamples=1000
    )
    assert found.permutation == pytest.approx(exact.pvalue, rel=1e-9)
    assert statistics.paired([1, 2, 3], [0, 0, 0]).permutation == 2 / 2**3


def test_equal_differences_have_no_t_test():
    found = statistics.paired([0.5, 0.5], [0.25, 0.25])
    assert (found.low, found.high, found.seeds) == (0.25, 0.25, 2)
    assert math.isnan(found.t_test)


def test_agreement_takes_an_interval_without_zero(monkeypatch):
    clear = statistics.Paired(0.01, 0.005, 0.015, 0.01, 0.25, 3)
    assert tables._agreement('top1', clear, 0.79, 0.78) == ['+1.00', 'yes']
    assert tables._agreement('top1', clear, 0.78, 0.79) == ['-1.00', 'no']
    assert tables._agreement('top1', None, 0.78, 0.79) == ['-1.00', 'not run']


def test_costs_are_counted_and_speeds_are_read(workdir):
    measured = collect.of_study(STUDY, workdir)
    found = rows(tables.costs(STUDY, measured, collect.speed(workdir)))
    assert found['Xception'] == {
        'parameters': '210,330', 'multiply-adds': '4,055,352', 'training steps/s': '2.5',
        'pictures/s': '320',
    }  # fmt: skip
    assert found['Inception V3']['training steps/s'] == 'not run'


def test_map_is_shown_where_it_is():
    assert tables.number('map100_classes', 6.7) == '6.7'
    study = studies.FC_LAYERS
    assert tables._paper(study, 'map100_classes') == tables._paper(study, 'map100_pictures')
    assert tables._paper(study, 'map100_classes')['open_images_fc'] == 6.78


def test_curves_are_those_of_the_averaged_weights_and_the_papers(workdir):
    measured = collect.of_study(STUDY, workdir)
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
    as_imagenet = studies.Figure('Figure 9', 'fig9', {'xception': 'residual', 'no_residual': ''})
    axes = figures.draw(STUDY, as_imagenet, measured).axes[0]
    dashed, ours, missing = axes.lines
    assert (dashed.get_label(), dashed.get_linestyle()) == ('Xception (paper, ImageNet)', '--')
    assert len(dashed.get_xdata()) == 57
    assert ours.get_label() == 'Xception (3 seeds)'
    assert missing.get_label() == 'Xception without residual connections: not run'
    assert len(missing.get_xdata()) == 0


def test_the_page_needs_nothing_else(workdir, tmp_path):
    page = Page('A <title>', 'Words.')
    report.add(page, 'fashion_mnist', str(workdir))
    report.add(page, str(workdir), None)  # the same as a folder: what is there, and no more
    page.save(tmp_path)
    text = (tmp_path / 'report.html').read_text()
    assert '<h1>A &lt;title&gt;</h1>' in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)|@import|<script', text)
    assert text.count('<svg') == 4
    assert figures.INK not in text  # the page's own colour in its place
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert text.count('class="missing"') > 10
    markdown = (tmp_path / 'report.md').read_text()
    for picture in re.findall(r'\]\((figures/[^)]+)\)', markdown):
        assert (tmp_path / picture).is_file()
        assert (tmp_path / picture).with_suffix('.svg').is_file()
    assert '| xception | 92.00 ± 2.00 | 99.00 ± 0.00 | 3 |' in markdown


def test_folders_and_studies_that_are_not_there_are_told(tmp_path):
    page = Page('', '')
    with pytest.raises(UserError, match='there is no run in'):
        report.add(page, str(tmp_path), None)
    with pytest.raises(UserError, match='the study imagenet needs --workdir'):
        report.add(page, 'imagenet', None)
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        report.add(page, 'imagnet', None)
