"""Benchmarks run, and write what they print; how quick anything is, is not tested."""

import json

import pytest

from experiments.benchmarks import turns


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


def test_a_contender_that_fails_ends_the_benchmark_with_its_words():
    with pytest.raises(SystemExit, match="networks nobody training 4 ended with 1: KeyError: 'nob"):
        turns.Contender('experiments.benchmarks.networks', ['nobody', 'training', 4], 4, 1.0)


def test_what_is_not_installed_is_left_out(capsys):
    from rich.console import Console

    packages = {'this': ('jax',), 'that': ('jax', 'no_such_package')}
    assert list(turns.installed(packages, Console())) == ['jax']
    assert 'that: not measured, as no_such_package is not installed' in capsys.readouterr().out
