import gc
import itertools
import time

import numpy as np
import pytest
from helpers import default_config

from xception_flax.base.errors import UserError
from xception_flax.data import pipeline
from xception_flax.data.reader import Reader
from xception_flax.data.sources.arrays import ArraySource

EXAMPLES = 50


@pytest.fixture
def reader():
    """Each image holds its own number, and so does its label."""
    images = np.broadcast_to(np.arange(EXAMPLES, dtype=np.uint8)[:, None, None], (EXAMPLES, 8, 8))
    names = [str(i) for i in range(EXAMPLES)]
    return Reader(ArraySource('numbers', images, np.arange(EXAMPLES), names), 0.0)


@pytest.fixture
def config():
    return default_config(
        image_size=8, batch_size=12, seed=3, augment__crop='none', augment__brightness=0.2
    )


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def test_batches_are_uint8_images_and_int32_labels(reader, config):
    batch = next(pipeline.training_batches(reader, config, 0))
    assert (batch['image'].shape, batch['image'].dtype) == ((12, 8, 8, 3), np.uint8)
    assert (batch['label'].shape, batch['label'].dtype) == ((12,), np.int32)


def test_every_epoch_has_every_example_once_in_another_order(reader, config):
    labels = take(pipeline.training_batches(reader, config, 0), 25)['label'].reshape(6, EXAMPLES)
    for epoch in labels:
        assert sorted(epoch) == list(range(EXAMPLES))
    assert len({tuple(epoch) for epoch in labels}) == 6


def test_order_and_augmentation_depend_on_seed_and_position_alone(reader, config):
    once = take(pipeline.training_batches(reader, config, 0), 10)
    config.loader_threads = 1
    again = take(pipeline.training_batches(reader, config, 0), 10)
    np.testing.assert_array_equal(once['image'], again['image'])
    # The same example is augmented differently in another epoch.
    positions = [np.flatnonzero(once['label'] == 7)[i] for i in (0, 1)]
    assert not np.array_equal(*(once['image'][p] for p in positions))
    config.seed = 4
    other = take(pipeline.training_batches(reader, config, 0), 10)
    assert not np.array_equal(once['label'], other['label'])


def test_neighbouring_seeds_share_no_epoch(reader, config):
    config.batch_size = EXAMPLES
    epochs = []
    for seed in (0, 1, 2):
        config.seed = seed
        labels = take(pipeline.training_batches(reader, config, 0), 4)['label']
        epochs += [tuple(epoch) for epoch in labels.reshape(4, EXAMPLES)]
    assert len(set(epochs)) == 12


@pytest.mark.parametrize('start', [12, 60, 7, 5 * EXAMPLES + 3])
def test_resuming_at_a_position_continues_the_sequence(reader, config, start):
    whole = take(pipeline.training_batches(reader, config, 0), 30)
    rest = take(pipeline.training_batches(reader, config, start), 3)
    for key in whole:
        np.testing.assert_array_equal(rest[key], whole[key][start : start + 36])


@pytest.mark.parametrize('processes', [2, 3, 4])
def test_processes_divide_the_batches_of_one(reader, config, processes):
    one = take(pipeline.training_batches(reader, config, 24), 6)
    parts = [
        list(itertools.islice(pipeline.training_batches(reader, config, 24, i, processes), 6))
        for i in range(processes)
    ]
    for key in one:
        together = [part[i][key] for i in range(6) for part in parts]
        np.testing.assert_array_equal(np.concatenate(together), one[key])


@pytest.mark.parametrize(('batch_size', 'processes'), [(12, 1), (12, 3), (EXAMPLES, 1), (64, 2)])
def test_evaluation_has_every_example_once_in_order_and_masks_the_rest(
    reader, config, batch_size, processes
):
    config.batch_size = batch_size
    parts = [
        list(pipeline.evaluation_batches(reader, config, i, processes)) for i in range(processes)
    ]
    count = -(-EXAMPLES // batch_size)
    assert {len(part) for part in parts} == {count}
    labels, mask = (
        np.concatenate([part[i][key] for i in range(count) for part in parts])
        for key in ('label', 'mask')
    )
    assert len(mask) == count * batch_size
    assert mask.sum() == EXAMPLES
    assert labels[mask > 0].tolist() == list(range(EXAMPLES))
    assert (mask[EXAMPLES:] == 0).all()


class Holes(ArraySource):
    """Images that hold their number, some of which are damaged."""

    def __init__(self, damaged):
        images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 8, 8))
        super().__init__('holes', images, np.arange(20), [str(i) for i in range(20)])
        self.damaged = damaged

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return {**record, 'image': b'broken'} if index in self.damaged else record


class Counted(Holes):
    """Notes what was read, and takes a while."""

    def __init__(self, seconds=0.0):
        super().__init__(())
        self.read, self.seconds = [], seconds

    def __getitem__(self, index):
        self.read.append(index)
        time.sleep(self.seconds)
        return super().__getitem__(index)


@pytest.mark.parametrize(('threads', 'ahead'), [(4, 2), (12, 2), (16, 3)])
def test_few_batches_wait_but_all_threads_have_work(config, threads, ahead):
    """More would fill the memory of a host whose devices are slow."""
    source, config.loader_threads = Counted(), threads
    batches = pipeline.training_batches(Reader(source, 0.0), config, 0)
    next(batches)
    expected = (1 + ahead) * config.batch_size
    deadline = time.monotonic() + 60
    while len(source.read) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # for one more, were there one
    assert len(source.read) == expected


def test_dropped_iterators_stop_reading(config):
    source, config.loader_threads, config.batch_size = Counted(0.01), 2, 100
    batches = pipeline.training_batches(Reader(source, 0.0), config, 0)
    next(batches)
    del batches
    gc.collect()
    read = len(source.read)
    time.sleep(0.5)  # in which a hundred were read
    assert len(source.read) <= read + 4


def test_labels_of_several_shapes_are_an_error(config):
    class Mixed(Holes):
        def __getitem__(self, index):
            label = np.arange(20) == 3 if index == 3 else index
            return {**super().__getitem__(index), 'label': label}

    with pytest.raises(ValueError, match=r'label has shapes \((20,)?\) and \((20,)?\)'):
        take(pipeline.training_batches(Reader(Mixed(()), 0.0), config, 0), 2)


def test_the_next_image_replaces_an_unreadable_one(config, caplog):
    config.batch_size = 20
    whole = take(pipeline.training_batches(Reader(Holes(()), 0.0), config, 0), 3)['label']
    reader = Reader(Holes((4, 5, 19)), 0.2)
    labels = take(pipeline.training_batches(reader, config, 0), 3)['label']
    np.testing.assert_array_equal(labels, [{4: 6, 5: 6, 19: 0}.get(i, i) for i in whole])
    assert reader.unreadable == {4, 5, 19}
    # Each is named once, though it was met in three epochs.
    assert sorted(r.getMessage() for r in caplog.records) == [
        f'holes[{i}] cannot be read: it is no JPEG, PNG, WebP, BMP, GIF or TIFF' for i in (19, 4, 5)
    ]


def test_evaluation_masks_unreadable_images_unlike_padding(config):
    reader = Reader(Holes((4, 19)), 0.2)
    batches = take(pipeline.evaluation_batches(reader, config), 2)
    assert batches['mask'].tolist() == [-1 if i in (4, 19) else float(i < 20) for i in range(24)]


def test_too_many_unreadable_images_end_the_run(config):
    reader = Reader(Holes((4, 5, 19)), 0.1)
    says = r'3 of 20 images cannot be read, more than config.max_unreadable=0.1 .* holes\[\d+\]'
    with pytest.raises(UserError, match=says):
        take(pipeline.training_batches(reader, config, 0), 3)
    with pytest.raises(UserError, match='none of the 20 images can be read'):
        Reader(Holes(range(20)), 1.0).read_or_next(3, [])


def test_a_label_out_of_range_is_reported_with_its_image(config):
    source = Holes(())
    source.labels = np.where(np.arange(20) == 7, 20, np.arange(20))
    with pytest.raises(UserError, match=r'holes\[7\] has the label 20, but there are 20 classes'):
        list(pipeline.evaluation_batches(Reader(source, 0.0), config))


def test_a_multi_label_image_has_a_row_of_zeros_and_ones(config):
    class Several(Holes):
        def __getitem__(self, index):
            row = np.eye(20, dtype=np.int64)[index] + np.eye(20, dtype=np.int64)[(index + 1) % 20]
            return {**super().__getitem__(index), 'label': row}

    batches = list(pipeline.evaluation_batches(Reader(Several((3,)), 0.1), config))
    assert [b['label'].shape for b in batches] == [(12, 20), (12, 20)]
    assert batches[0]['label'].sum(1).tolist() == [2, 2, 2, 0, 2, 2, 2, 2, 2, 2, 2, 2]
