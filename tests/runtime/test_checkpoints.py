import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xception_flax
from xception_flax import config as configs
from xception_flax.config import reading
from xception_flax.config.checks import build_model
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.runtime.errors import UserError
from xception_flax.training.optimizers import make_optimizer
from xception_flax.training.state import create_state


@pytest.fixture(scope='module')
def run():
    c = configs.default()
    c.image_size = 8
    c.dataset.num_classes = 3
    c.xception.update({'stem': 'small', 'width': 0.125, 'middle_repeats': 1})
    model = build_model(c, 3)
    optimizer = make_optimizer(c, lambda step: 0.1)
    state = jax.jit(lambda rng: create_state(model, optimizer, 8, True, rng))(jax.random.key(0))
    return c, state


def at(state, step):
    """The state of another step, whose weights tell the step."""
    shifted = jax.tree.map(lambda x: x + step, state.params)
    return state.replace(step=jnp.int32(step), params=shifted)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_what_is_saved_comes_back_bit_for_bit(run, tmp_path):
    _, state = run
    saved = Checkpoint(at(state, 7), position=896, seconds=1.5, top1=0.5)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(abstract(state)) is None
    checkpoints.save(saved)
    checkpoints.wait()
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore(abstract(state))
    assert (restored.position, restored.seconds, restored.top1) == (896, 1.5, 0.5)
    assert jax.tree.structure(restored.state) == jax.tree.structure(saved.state)
    jax.tree.map(np.testing.assert_array_equal, restored.state, saved.state)


def test_the_newest_and_the_best_are_kept_over_a_restart(run, tmp_path):
    _, state = run
    top1 = {1: 0.1, 2: 0.9, 3: None, 4: 0.5, 5: 0.9, 6: 0.3, 7: None, 8: 0.2}
    for part in ((1, 2, 3, 4), (5, 6, 7, 8)):
        checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
        for step in part:
            checkpoints.save(Checkpoint(at(state, step), top1=top1[step]))
        checkpoints.wait()
        steps, best = checkpoints.steps(), checkpoints.best_step()
        checkpoints.close()
        assert (steps, best) == {1: ([2, 3, 4], 2), 5: ([5, 7, 8], 5)}[part[0]]


def test_saving_a_step_again_is_an_error_and_not_silence(run, tmp_path):
    _, state = run
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(at(state, 1)))
    checkpoints.wait()
    with pytest.raises(Exception, match='1'):
        checkpoints.save(Checkpoint(at(state, 1)))
    checkpoints.close()


class TestLoadCheckpoint:
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
        model, variables, config = xception_flax.load_checkpoint(workdir)
        assert config.to_dict() == c.to_dict()
        jax.tree.map(np.testing.assert_array_equal, variables, state.ema)
        logits = model.apply(variables, jnp.zeros((2, 8, 8, 3)), train=False)
        assert logits.shape == (2, 3)

    @pytest.mark.parametrize(('step', 'expected'), [(None, 5), (3, 3), (5, 5)])
    def test_finds_the_newest_or_the_step_asked_for(self, run, workdir, step, expected):
        _, state = run
        _, variables, _ = xception_flax.load_checkpoint(workdir, step, weights='live')
        jax.tree.map(np.testing.assert_array_equal, variables['params'], at(state, expected).params)

    def test_says_what_there_is(self, run, workdir, tmp_path):
        with pytest.raises(UserError, match=r'no checkpoint of step 4 but of \[3, 5\]'):
            xception_flax.load_checkpoint(workdir, 4)
        with pytest.raises(UserError, match='weights'):
            xception_flax.load_checkpoint(workdir, weights='best')
        with pytest.raises(UserError, match='holds no run'):
            xception_flax.load_checkpoint(tmp_path / 'elsewhere')
        (tmp_path / 'new').mkdir()
        (tmp_path / 'new' / 'config.json').write_text(reading.to_json(run[0]))
        with pytest.raises(UserError, match='no checkpoint yet'):
            xception_flax.load_checkpoint(tmp_path / 'new')
