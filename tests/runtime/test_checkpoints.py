import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.models import build_model
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.training.optimizers import make_optimizer
from xception_flax.training.state import create_state


@pytest.fixture(scope='module')
def run():
    c = small_config(image_size=8, dataset__num_classes=3, ema_decay=0.9, xception__width=0.125)
    model = build_model(c, 3)
    optimizer = make_optimizer(c, lambda step: 0.1)
    state = jax.jit(lambda rng: create_state(model, optimizer, 8, True, rng))(jax.random.key(0))
    return c, state


def at(state, step):
    """The state of another step, with other weights for each step."""
    shifted = jax.tree.map(lambda x: np.asarray(x) + np.float32(step), state.params)
    return state.replace(step=jnp.int32(step), params=shifted)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_a_checkpoint_restores_to_the_bit(run, tmp_path):
    _, state = run
    saved = Checkpoint(at(state, 7), 896, 1000, 1.5, 3, 2)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(abstract(state)) == (None, [])
    checkpoints.save(saved)
    checkpoints.wait()
    checkpoints.close()
    restored, damaged = Checkpoints(tmp_path).restore(abstract(state))
    assert damaged == []
    assert dataclasses.replace(restored, state=None) == dataclasses.replace(saved, state=None)
    assert jax.tree.structure(restored.state) == jax.tree.structure(saved.state)
    jax.tree.map(np.testing.assert_array_equal, restored.state, saved.state)


def test_the_newest_and_the_best_are_kept_over_a_restart(run, tmp_path):
    _, state = run
    measured = {1: 0.1, 2: 0.9, 4: 0.5, 5: 0.9, 6: 0.3, 8: 0.2}
    for part in ((1, 2, 3, 4), (5, 6, 7, 8)):
        scores = {step: value for step, value in measured.items() if step < part[0]}
        checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1, scores=scores)
        for step in part:
            checkpoints.save(Checkpoint(at(state, step)))
            scores |= {step: measured[step]} if step in measured else {}
        checkpoints.wait()
        steps, best = checkpoints.steps(), checkpoints.best_step()
        checkpoints.close()
        assert (steps, best) == {1: ([2, 3, 4], 2), 5: ([5, 7, 8], 5)}[part[0]]


def test_saving_a_step_again_is_an_error(run, tmp_path):
    _, state = run
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(at(state, 1)))
    checkpoints.wait()
    with pytest.raises(RuntimeError, match=r'did not save step 1; it has \[1\]'):
        checkpoints.save(Checkpoint(at(state, 1)))
    checkpoints.close()


@pytest.fixture(scope='module')
def sound(run, tmp_path_factory):
    """The folder of a run with checkpoints of steps 1 and 2."""
    _, state = run
    workdir = tmp_path_factory.mktemp('sound')
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        checkpoints.save(Checkpoint(at(state, step), position=step))
    checkpoints.close()
    return workdir


class TestDamage:
    """Every file of the newest checkpoint, damaged in every way."""

    @staticmethod
    def restored(workdir, state):
        checkpoints = Checkpoints(workdir)
        try:
            return checkpoints.restore(abstract(state))
        finally:
            checkpoints.close()

    @pytest.mark.parametrize(
        'how',
        [
            'remove',
            'flip',
            pytest.param('truncate', marks=pytest.mark.slow),
            pytest.param('empty', marks=pytest.mark.slow),
        ],
    )
    def test_the_one_before_is_used_and_the_damaged_one_is_kept(self, run, sound, tmp_path, how):
        _, state = run
        files = [p.relative_to(sound) for p in sorted((sound / 'checkpoints/2').rglob('*'))]
        used = {1: 0, 2: 0}
        for i, file in enumerate(f for f in files if (sound / f).is_file()):
            workdir = tmp_path / str(i)
            shutil.copytree(sound, workdir)
            damage(workdir / file, how)
            restored, damaged = self.restored(workdir, state)
            step = int(restored.state.step)
            used[step] += 1
            # Whatever is used is what was saved, to the last bit.
            assert restored.position == step
            jax.tree.map(np.testing.assert_array_equal, restored.state, at(state, step))
            names = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
            assert names == (['1', '2'] if step == 2 else ['1', '2.damaged']), file
            assert len(damaged) == 2 - step
            assert all(f'{workdir}/checkpoints/2 is damaged' in line for line in damaged)
        # Some files are not read at all (a note of orbax that the checkpoint is whole).
        assert used[1] >= 5, used

    def test_flipped_bits_of_the_weights_do_not_pass(self, run, sound, tmp_path):
        _, state = run
        files = (p for p in (sound / 'checkpoints/2/state').rglob('*') if p.is_file())
        largest = max(files, key=lambda p: p.stat().st_size).relative_to(sound)
        size = (sound / largest).stat().st_size
        for i, offset in enumerate(range(size // 20, size, size // 10)):
            workdir = tmp_path / str(i)
            shutil.copytree(sound, workdir)
            damage(workdir / largest, 'flip', offset)
            restored, damaged = self.restored(workdir, state)
            assert int(restored.state.step) == 1
            assert len(damaged) == 1

    def test_a_half_written_folder_is_passed_over(self, run, sound, tmp_path):
        _, state = run
        workdir = tmp_path / 'half'
        shutil.copytree(sound, workdir)
        (workdir / 'checkpoints/3').mkdir()
        (workdir / 'checkpoints/4.orbax-checkpoint-tmp').mkdir()
        restored, damaged = self.restored(workdir, state)
        assert int(restored.state.step) == 2
        assert (workdir / 'checkpoints/4.orbax-checkpoint-tmp').exists()
        if damaged:
            assert (workdir / 'checkpoints/3.damaged').exists()

    def test_without_a_whole_checkpoint_the_run_stops_and_keeps_all(self, run, sound, tmp_path):
        _, state = run
        workdir = tmp_path / 'none'
        shutil.copytree(sound, workdir)
        for step in (1, 2):
            shutil.rmtree(workdir / f'checkpoints/{step}/state')
        for _ in range(2):  # not at the second try either does it start from zero
            with pytest.raises(UserError, match=r'no checkpoint in .* can be read.*give another'):
                self.restored(workdir, state)
        assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['1', '2']

    def test_the_step_of_a_damaged_one_can_be_saved_again(self, run, sound, tmp_path):
        _, state = run
        workdir = tmp_path / 'again'
        shutil.copytree(sound, workdir)
        shutil.rmtree(workdir / 'checkpoints/2/state')
        checkpoints = Checkpoints(workdir)
        checkpoints.restore(abstract(state))
        checkpoints.save(Checkpoint(at(state, 2)))
        checkpoints.close()
        restored, damaged = self.restored(workdir, state)
        assert (int(restored.state.step), damaged) == (2, [])
        # And be damaged again.
        shutil.rmtree(workdir / 'checkpoints/2/state')
        restored, _ = self.restored(workdir, state)
        assert int(restored.state.step) == 1
        names = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
        assert names == ['1', '2.damaged', '2.damaged2']

    def test_load_names_the_damaged_checkpoint(self, run, sound, tmp_path):
        c, _ = run
        workdir = tmp_path / 'load'
        shutil.copytree(sound, workdir)
        (workdir / 'config.json').write_text(reading.to_json(c))
        # Which file has the weights and which the optimizer's state, orbax decides.
        for file in (workdir / 'checkpoints/2/state').rglob('d/*'):
            damage(file, 'flip')
        with pytest.raises(UserError, match=r'step 2 in .* is damaged .*; there are \[1, 2\]'):
            xception_flax.load(workdir)
        xception_flax.load(workdir, 1)


def damage(path, how, offset=None):
    data = bytearray(path.read_bytes())
    if how == 'remove':
        path.unlink()
        return
    if how == 'flip' and data:
        data[len(data) // 2 if offset is None else offset] ^= 0x10
    path.write_bytes({'truncate': data[: len(data) // 2], 'empty': b''}.get(how, data))


def test_nothing_in_a_checkpoint_can_run_code(run, tmp_path):
    """Python tells of every pickle that is about to make an object."""
    c, state = run
    (tmp_path / 'config.json').write_text(reading.to_json(c))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(at(state, 1)))
    checkpoints.close()
    code = """
import sys
def hook(event, args):
    if event.startswith('pickle.'):
        raise SystemExit(f'{event} {args}')
import xception_flax.runtime.checkpoints, flax.linen, orbax.checkpoint
sys.addaudithook(hook)
print(xception_flax.load(sys.argv[1]).variables.keys())
"""
    result = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "dict_keys(['batch_stats', 'params'])", result.stderr


class TestLoad:
    @pytest.fixture
    def workdir(self, run, tmp_path):
        c, state = run
        (tmp_path / 'config.json').write_text(reading.to_json(c))
        checkpoints = Checkpoints(tmp_path)
        for step in (3, 5):
            checkpoints.save(Checkpoint(at(state, step)))
        checkpoints.wait()
        checkpoints.close()
        return tmp_path

    def test_gives_model_variables_and_config(self, run, workdir):
        c, state = run
        net = xception_flax.load(workdir)
        assert net.config.to_dict() == c.to_dict()
        assert net.class_names is None
        jax.tree.map(np.testing.assert_array_equal, net.variables, state.ema)
        logits = jax.jit(net.model.apply)(net.variables, jnp.zeros((2, 8, 8, 3)))
        assert logits.shape == (2, 3)

    @pytest.mark.parametrize(('step', 'expected'), [(None, 5), (3, 3), (5, 5)])
    def test_finds_the_newest_or_the_step_asked_for(self, run, workdir, step, expected):
        _, state = run
        variables = xception_flax.load(workdir, step, 'live').variables
        jax.tree.map(np.testing.assert_array_equal, variables['params'], at(state, expected).params)

    def test_errors_name_the_steps_that_exist(self, run, workdir, tmp_path):
        with pytest.raises(UserError, match=r'no checkpoint of step 4 but of \[3, 5\]'):
            xception_flax.load(workdir, 4)
        with pytest.raises(UserError, match='weights'):
            xception_flax.load(workdir, weights='best')
        with pytest.raises(UserError, match='no run, no weights file and no published name'):
            xception_flax.load(tmp_path / 'elsewhere')
        (tmp_path / 'empty').mkdir()
        with pytest.raises(UserError, match='holds no run'):
            xception_flax.load(tmp_path / 'empty')
        (tmp_path / 'new').mkdir()
        (tmp_path / 'new' / 'config.json').write_text(reading.to_json(run[0]))
        with pytest.raises(UserError, match='no checkpoint yet'):
            xception_flax.load(tmp_path / 'new')
