import json
import math

from helpers import scalars

from xception_flax.runtime import writers


def test_entries_are_lines_of_json_and_scalars_of_tensorboard(tmp_path):
    writer = writers.MetricWriter(tmp_path, [], 0)
    writer.write({'step': 1, 'split': 'train', 'loss': 0.5, 'rate': math.inf})
    writer.write({'step': 1, 'split': 'test', 'weights': 'live', 'top1': 0.25, 'examples': 4})
    writer.close()
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {'step': 1, 'split': 'train', 'loss': 0.5, 'rate': 'inf'},
        {'step': 1, 'split': 'test', 'weights': 'live', 'top1': 0.25, 'examples': 4},
    ]
    assert scalars(tmp_path / 'tensorboard') == {
        ('train/loss', 1): 0.5,
        ('test/live/top1', 1): 0.25,
        ('test/live/examples', 1): 4.0,
    }


def test_resuming_from_a_step_drops_later_entries(tmp_path):
    writer = writers.MetricWriter(tmp_path, [], 0)
    for step in (1, 2, 3):
        writer.write({'step': step, 'split': 'train', 'loss': 1.0})
    writer.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "spl')  # killed while writing
    kept = [record for record in writers.read(tmp_path / 'metrics.jsonl') if record['step'] <= 2]
    writer = writers.MetricWriter(tmp_path, kept, 2)
    writer.write({'step': 3, 'split': 'train', 'loss': 2.0})
    writer.close()
    entries = writers.read(tmp_path / 'metrics.jsonl')
    assert [(entry['step'], entry['loss']) for entry in entries] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


def test_a_missing_file_has_no_entries(tmp_path):
    assert writers.read(tmp_path / 'metrics.jsonl') == []
