"""Benchmarks run and write what they print; speed itself is not tested."""

import json

import pytest

from experiments.benchmarks import networks, turns


@pytest.mark.slow
def test_the_input_of_this_project_is_measured(program, tmp_path):
    output = program(
        '-m', 'experiments.benchmarks.input', '--contender=ours', '--batch=8', '--rounds=2',
        '--seconds=0.1', f'--output={tmp_path}/input.json',
    )  # fmt: skip
    results = json.loads((tmp_path / 'input.json').read_text())
    rates = results['ours']['images_per_cpu_second']
    assert len(rates) == 2
    assert min(rates) > 0
    assert f'{sum(rates) / 2:.0f}' in output  # the median of two
    assert f'grain {results["versions"]["grain"]}' in output


@pytest.mark.slow
def test_layouts_and_the_ceiling_of_python_are_measured(program, tmp_path):
    program(
        '-m', 'experiments.benchmarks.layouts', '--images=1000', '--height=24', '--rounds=1',
        '--seconds=0.1', f'--output={tmp_path}/layouts.json',
    )  # fmt: skip
    results = json.loads((tmp_path / 'layouts.json').read_text())
    ours = ('folders', 'tars', 'webdataset', 'tfrecord', 'array_record')
    assert all(results[name]['images_per_cpu_second'][0] > 0 for name in ours)
    assert all(results[name]['index_seconds_per_million'] > 0 for name in ours)
    program(
        '-m', 'experiments.benchmarks.ceiling', '--batch=8', '--rounds=1', '--seconds=0.1',
        f'--output={tmp_path}/ceiling.json',
    )  # fmt: skip
    assert json.loads((tmp_path / 'ceiling.json').read_text())['2 processes'][0]['wall'] > 0


def test_a_failing_contender_ends_the_benchmark_with_its_error():
    with pytest.raises(SystemExit, match="networks nobody training 4 ended with 1: KeyError: 'nob"):
        turns.Contender('experiments.benchmarks.networks', ['nobody', 'training', 4], 4, 1.0)


def test_a_contender_that_is_not_installed_is_left_out(capsys):
    from rich.console import Console

    packages = {'this': ('jax',), 'that': ('jax', 'no_such_package')}
    assert list(turns.installed(packages, Console())) == ['jax']
    assert 'that: not measured: no_such_package is not installed' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('task', ['inference', 'training'])
def test_the_settings_of_the_benchmarks_fit_a_small_network(task):
    small = {'image_size': 71, 'xception.width': 0.05, 'xception.middle_repeats': 0}
    call = networks.xception_flax(task, 2, **small)
    for _ in range(2):
        call()
    found = networks.facts(('jax', 'flax'))
    assert (found['device'], found['devices']) == ('cpu', 1)
    assert found['memory'] > 2**27


def test_a_failing_start_is_no_measurement(program):
    failing = (
        'from experiments.benchmarks import overhead; overhead.MAIN = ("-c", "print(1)"); '
        'overhead.starting("/tmp")'
    )
    assert 'the run ended with status 0 before its first step' in program('-c', failing, status=1)


def test_growth_is_drawn(program, tmp_path):
    points = [
        {'value': v, 'seconds': [2.4 + v / 10], 'memory': (4 + v / 10) * 2**30} for v in (1, 8)
    ]
    drawing = (
        'import pathlib; from experiments.benchmarks import growth; '
        f'growth.draw({{"machine": "x", "devices": {points}}}, ["devices"], '
        f'pathlib.Path("{tmp_path}/growth.svg"))'
    )
    program('-c', drawing)
    drawn = (tmp_path / 'growth.svg').read_text()
    texts = ('simulated devices', 'seconds per step', 'peak memory, GiB', '8')
    assert all(f'<!-- {text} -->' in drawn for text in texts)
