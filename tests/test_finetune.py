"""Fine-tuning, from a run on the digits onto a folder of pictures."""

import shutil

import cv2
import jax
import numpy as np
import pytest
from test_main import records, weights

NETWORK = (
    '--config.xception.stem=small', '--config.xception.width=0.05',
    '--config.xception.middle_repeats=0', '--config.image_size=16', '--config.batch_size=8',
    '--config.eval_steps=2', '--config.log_steps=1', '--config.keep_last=9',
)  # fmt: skip
BEFORE = ('-m', 'xception_flax.main', '--config=configs/digits.py', *NETWORK)
FINETUNE = ('-m', 'xception_flax.main', '--config=configs/finetune.py', *NETWORK)


def pictures(folder):
    """Three classes of three colours."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 4)):
        for label, colour in enumerate(([200, 40, 40], [40, 200, 40], [40, 40, 200])):
            (folder / split / f'class{label}').mkdir(parents=True)
            for i in range(count):
                picture = np.uint8(colour * rng.uniform(0.6, 1, (20, 20, 1)))
                cv2.imwrite(str(folder / split / f'class{label}' / f'{i}.png'), picture)
    return folder


@pytest.fixture(scope='module')
def tuned(tmp_path_factory, program):
    """A run, one that starts from it with a frozen trunk but for the exit flow, and its command."""
    folder = tmp_path_factory.mktemp('finetune')
    program(*BEFORE, '--config.total_steps=2', f'--workdir={folder}/before')
    args = (
        *FINETUNE, f'--config.init.weights={folder}/before', '--config.frozen=entry_flow',
        f'--config.dataset.data_dir={pictures(folder / "data")}', '--config.total_steps=6',
        '--config.optimizer.layer_decay=0.9', f'--workdir={folder}/after',
    )  # fmt: skip
    return folder, args, program(*args)


def test_a_run_starts_from_another_and_its_trunk_stays(tuned):
    folder, _, output = tuned
    before, after = (weights(folder / name)['averaged'] for name in ('before', 'after'))
    live = weights(folder / 'after')['live']
    assert f'starting from {folder}/before; drawn anew: logits' in output
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(part)) for name, part in after['params'].items()
    }
    learning = sizes['exit_flow'] + sizes['logits']
    assert f'{learning:,} trainable parameters ({sizes["entry_flow"]:,} frozen)' in output
    for kind in ('params', 'batch_stats'):
        for tree in (live, after):
            jax.tree.map(
                np.testing.assert_array_equal,
                tree[kind]['entry_flow'], before[kind]['entry_flow'],
            )  # fmt: skip
        moved = jax.tree.map(np.array_equal, live[kind]['exit_flow'], before[kind]['exit_flow'])
        assert not any(jax.tree.leaves(moved))
    assert after['params']['logits']['kernel'].shape[1] == 3
    assert [r['examples'] for r in records(folder / 'after') if 'weights' in r] == [12] * 6


def test_it_goes_on_to_the_same_bits_without_the_first_weights(tuned, program):
    folder, args, _ = tuned
    expected, numbers = weights(folder / 'after'), records(folder / 'after')
    for step in ('4', '6'):
        shutil.rmtree(folder / 'after' / 'checkpoints' / step)
    (folder / 'before').rename(folder / 'elsewhere')
    try:
        output = program(*args)
        assert 'going on from the checkpoint of step 2' in output
        assert records(folder / 'after') == numbers
        jax.tree.map(np.testing.assert_array_equal, weights(folder / 'after'), expected)
    finally:
        (folder / 'elsewhere').rename(folder / 'before')


def test_what_is_frozen_and_where_it_began_cannot_change_on_the_way(tuned, program):
    _, args, _ = tuned
    output = program(*args, '--config.frozen=trunk', '--config.init.weights=W', status=1)
    assert "config.frozen: 'entry_flow' -> 'trunk'" in output
    assert 'config.init.weights: ' in output


def test_weights_of_another_network_end_the_run_before_it_has_begun(tuned, program, tmp_path):
    _, args, _ = tuned
    args = (*args, '--config.xception.residual=False', f'--workdir={tmp_path}/other')
    output = program(*args, status=1)
    assert output.splitlines()[-1].startswith('error: ')
    assert output.endswith('give --config.xception.residual=True\n')
    assert not (tmp_path / 'other' / 'config.json').exists()
