"""The fine-tuning results, as they stand in the README of their folder."""

from helpers import ROOT

from experiments.finetune import clothing_results

FOLDER = ROOT / 'experiments' / 'finetune'


def test_the_tables_are_those_of_the_results():
    readme = (FOLDER / 'README.md').read_text('utf-8')
    groups = clothing_results.grouped(clothing_results.read())
    assert len(groups) >= 2
    for (machine, size, epochs), found in groups.items():
        title = f'{size} pixels, {epochs} epochs, {machine}'
        assert clothing_results.table(title, found).markdown() in readme


def test_a_row_is_the_mean_of_the_seeds_with_its_range():
    run = {
        'who': 'ours', 'recipe': 'probe', 'seed': 0, 'size': 96, 'epochs': 2, 'machine': 'mine',
        'seconds': 10.0, 'memory': 2e9, 'validation': [0.1, 0.5], 'test': 0.5,
        'seconds_per_epoch': 4.0,
    }  # fmt: skip
    other = run | {'seed': 1, 'seconds': 20.0, 'validation': [0.2, 0.7], 'test': 0.6}
    (row,) = clothing_results.table('a', [run, other]).rows
    assert row == [
        'probe', 'xception_flax', '2', '60.0 (50.0 to 70.0)', '55.0 (50.0 to 60.0)', '4', '15',
        '2.0 GB',
    ]  # fmt: skip
