import pytest

from xception_flax.runtime.progress import Progress, duration


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0, '0 s'),
        (59.4, '59 s'),
        (60, '1 min 0 s'),
        (3_725, '1 h 2 min'),
        (90_000, '1 d 1 h'),
    ],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_the_clock_stops_in_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    progress = Progress(100, visible=False)
    progress.seconds = 10.0  # of an earlier start
    progress.start(step=5)
    now[0] += 2
    with progress.pause():
        now[0] += 50
    now[0] += 1
    assert progress.steps_per_second(step=11) == pytest.approx(2.0)
    assert progress.seconds == 13
    now[0] += 4
    assert progress.steps_per_second(step=15) == pytest.approx(1.0)
    progress.close()
    now[0] += 100
    assert progress.seconds == 17


def test_only_the_visible_process_prints(capsys):
    Progress(1, visible=False).say('hello')
    assert capsys.readouterr().out == ''
    Progress(1, visible=True).say('hello')
    assert capsys.readouterr().out == 'hello\n'


def test_the_time_that_waits_for_data_is_a_fraction_of_each_interval(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    progress = Progress(100, visible=False)
    progress.wait(9)  # for the first batch
    progress.start(step=1)
    now[0] += 4
    progress.wait(3)
    assert progress.steps_per_second(step=3) == pytest.approx(0.5)
    assert (progress.waiting, progress.waited) == (pytest.approx(0.75), 3)
    now[0] += 10
    with progress.pause():
        progress.wait(7)
    progress.steps_per_second(step=5)
    assert (progress.waiting, progress.waited) == (0, 3)
