"""The time in which the devices wait for data: measured, written, said."""

import concurrent.futures
import json
import time

import jax.numpy as jnp
from helpers import small_config

from xception_flax.data import images
from xception_flax.runtime.progress import Progress
from xception_flax.training import loop, recorder


def test_only_the_time_after_the_newest_step_counts(monkeypatch):
    now, events = [0.0], []
    monkeypatch.setattr('time.perf_counter', lambda: now[0])

    def slow_batches():
        while True:
            now[0] += 1
            for event in events:
                event()
            now[0] += 2
            yield {}

    progress = Progress(100, visible=False)
    progress.start(1)
    feed = loop._Feed(slow_batches(), progress)
    feed.next()
    assert progress.waited == 0  # nothing was computed before
    feed.busy_until({'loss': jnp.ones(())})
    feed._idle.result()
    now[0] += 5  # in which the host did something else
    feed.next()
    assert progress.waited == 3
    feed._idle = concurrent.futures.Future()  # a step that still runs
    feed.next()
    assert progress.waited == 3
    events.append(lambda: feed._idle.set_result(now[0]))  # and is done after the first second
    feed.next()
    assert progress.waited == 5
    feed.close()


def test_the_log_says_where_training_waits_for_data(tmp_path, capsys, monkeypatch):
    def slow(*args, real=images.for_training):
        time.sleep(0.05)
        return real(*args)

    monkeypatch.setattr(images, 'for_training', slow)
    monkeypatch.setattr(recorder, 'WAITED', 0.1)
    loop.train(small_config(model='lenet5', image_size=32, log_steps=1, total_steps=6), tmp_path)
    output = capsys.readouterr().out
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    steps = [e for e in map(json.loads, lines) if e['split'] == 'train']
    fractions = [e.get('input_wait_fraction') for e in steps]
    assert fractions.pop(0) is None  # the clock starts after the first step
    assert len(fractions) == 5
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert f'waits for data {100 * max(fractions):.0f} % of the time' in output
    assert output.count('of the time') == sum(fraction >= 0.1 for fraction in fractions)
    assert output.count('let config.dataset.copy_to name a folder') == 1
