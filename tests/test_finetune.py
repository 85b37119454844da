"""Fine-tuning, from a run on the digits onto a folder of images."""

import shutil

import jax
import numpy as np
import pytest
from helpers import entries, weights, write_class_folders

pytestmark = pytest.mark.slow
NETWORK = (
    '--config.xception.stem=small', '--config.xception.width=0.05',
    '--config.xception.middle_repeats=0', '--config.image_size=16', '--config.batch_size=8',
    '--config.eval_steps=2', '--config.log_steps=1', '--config.keep_last=9',
)  # fmt: skip
BEFORE = ('-m', 'xception_flax.main', '--config=configs/digits.py', *NETWORK)
FINETUNE = ('-m', 'xception_flax.main', '--config=configs/finetune.py', *NETWORK)


@pytest.fixture(scope='module')
def tuned(tmp_path_factory, program):
    """A run; and one that starts from it with a frozen entry flow, its command and output."""
    folder = tmp_path_factory.mktemp('finetune')
    program(*BEFORE, '--config.total_steps=2', f'--workdir={folder}/before')
    data = write_class_folders(folder / 'data', {'train': 8, 'val': 4}, classes=3)
    args = (
        *FINETUNE, f'--config.init.weights={folder}/before', '--config.frozen=entry_flow',
        f'--config.dataset.data_dir={data}', '--config.total_steps=6',
        '--config.optimizer.layer_decay=0.9', f'--workdir={folder}/after',
    )  # fmt: skip
    return folder, args, program(*args)


def test_a_run_starts_from_another_and_its_frozen_module_stays(tuned):
    folder, _, output = tuned
    before, after = (weights(folder / name)['averaged'] for name in ('before', 'after'))
    live = weights(folder / 'after')['live']
    assert f'starting from {folder}/before; randomly initialised: logits' in output
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(part)) for name, part in after['params'].items()
    }
    trainable = sizes['exit_flow'] + sizes['logits']
    assert f'{trainable:,} trainable parameters ({sizes["entry_flow"]:,} frozen)' in output
    for kind in ('params', 'batch_stats'):
        for tree in (live, after):
            jax.tree.map(
                np.testing.assert_array_equal,
                tree[kind]['entry_flow'], before[kind]['entry_flow'],
            )  # fmt: skip
        moved = jax.tree.map(np.array_equal, live[kind]['exit_flow'], before[kind]['exit_flow'])
        assert not any(jax.tree.leaves(moved))
    assert after['params']['logits']['kernel'].shape[1] == 3
    assert [r['examples'] for r in entries(folder / 'after') if 'weights' in r] == [12] * 6


def test_it_resumes_to_the_same_bits_without_the_first_weights(tuned, program):
    folder, args, _ = tuned
    expected, numbers = weights(folder / 'after'), entries(folder / 'after')
    for step in ('4', '6'):
        shutil.rmtree(folder / 'after' / 'checkpoints' / step)
    (folder / 'before').rename(folder / 'elsewhere')
    try:
        output = program(*args)
        assert 'resuming from the checkpoint of step 2' in output
        assert entries(folder / 'after') == numbers
        jax.tree.map(np.testing.assert_array_equal, weights(folder / 'after'), expected)
    finally:
        (folder / 'elsewhere').rename(folder / 'before')


def test_frozen_modules_and_first_weights_cannot_change_in_a_run(tuned, program):
    _, args, _ = tuned
    output = program(*args, '--config.frozen=trunk', '--config.init.weights=W', status=1)
    assert "config.frozen: 'entry_flow' -> 'trunk'" in output
    assert 'config.init.weights: ' in output


def test_weights_of_another_network_are_an_error_before_the_run(tuned, program, tmp_path):
    _, args, _ = tuned
    args = (*args, '--config.xception.residual=False', f'--workdir={tmp_path}/other')
    output = program(*args, status=1)
    assert output.splitlines()[-1].startswith('error: ')
    assert output.endswith('give --config.xception.residual=True\n')
    assert not (tmp_path / 'other' / 'config.json').exists()
