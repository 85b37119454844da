import pytest
from helpers import default_config

from xception_flax.base.errors import UserError
from xception_flax.config import Durations


def resolve(**settings):
    """Durations of 250 examples in batches of 10: 25 steps per epoch."""
    return Durations.resolve(default_config(batch_size=10, **settings), examples=250)


@pytest.mark.parametrize(
    ('settings', 'total'),
    [
        ({'total_steps': 7}, 7),
        ({'total_epochs': 2.0}, 50),
        ({'total_epochs': 0.5}, 12),
        ({'total_examples': 1000}, 100),
        ({'total_examples': 1}, 1),
    ],
)
def test_the_total_is_given_in_any_unit(settings, total):
    assert resolve(**settings).total == total


def test_other_durations_are_given_in_any_unit_or_in_percent():
    durations = resolve(
        total_steps=200,
        eval_epochs=1.5,
        checkpoint_percent=12.5,
        log_examples=50,
        schedule__warmup_percent=5.0,
        schedule__decay_epochs=0.25,
    )
    assert durations.eval == 37.5
    assert durations.checkpoint == 25
    assert durations.log == 5
    assert durations.warmup == 10
    assert durations.decay == 6.25


def test_a_duration_that_is_not_set_is_never_due():
    durations = resolve(total_steps=5)
    assert durations.eval == 0
    assert not any(durations.due(durations.eval, step) for step in range(1, 100))


def test_fractions_of_a_step_do_not_drift():
    due = [step for step in range(1, 31) if Durations.due(7.5, step)]
    assert due == [8, 15, 23, 30]
    assert [step for step in range(1, 4) if Durations.due(0.5, step)] == [1, 2, 3]


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({}, 'total_steps is not set'),
        (
            {'total_steps': 5, 'total_epochs': 1.0},
            'total_steps and config.total_epochs are both set',
        ),
        ({'total_steps': 0}, 'must be above 0'),
        ({'total_steps': 5, 'eval_steps': -1}, 'eval_steps is -1'),
        ({'total_epochs': float('nan')}, 'total_epochs is nan'),
        ({'total_epochs': float('inf')}, 'total_epochs is inf'),
        ({'total_steps': 5, 'schedule__warmup_percent': -1.0}, 'config.schedule.warmup_percent'),
    ],
)
def test_impossible_durations_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        resolve(**settings)
