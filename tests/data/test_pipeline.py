import gc
import itertools
import time

import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.data import pipeline
from xception_flax.data.reader import Reader
from xception_flax.data.sources.arrays import ArraySource
from xception_flax.runtime.errors import UserError

EXAMPLES = 50


@pytest.fixture
def reader():
    """Each picture holds its own number, and so does its label."""
    pictures = np.broadcast_to(np.arange(EXAMPLES, dtype=np.uint8)[:, None, None], (EXAMPLES, 8, 8))
    names = [str(i) for i in range(EXAMPLES)]
    return Reader(ArraySource('numbers', pictures, np.arange(EXAMPLES), names), 0.0)


@pytest.fixture
def config():
    c = configs.default()
    c.image_size = 8
    c.batch_size = 12
    c.seed = 3
    c.augment.crop, c.augment.brightness = 'none', 0.2
    return c


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def test_batches_are_uint8_pictures_and_int32_labels(reader, config):
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
    # The same example is augmented otherwise in another epoch.
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
def test_going_on_at_a_position_gives_what_would_have_come(reader, config, start):
    whole = take(pipeline.training_batches(reader, config, 0), 30)
    rest = take(pipeline.training_batches(reader, config, start), 3)
    for key in whole:
        np.testing.assert_array_equal(rest[key], whole[key][start : start + 36])


@pytest.mark.parametrize('hosts', [2, 3, 4])
def test_hosts_share_out_the_batches_of_one(reader, config, hosts):
    one = take(pipeline.training_batches(reader, config, 24), 6)
    shares = [
        list(itertools.islice(pipeline.training_batches(reader, config, 24, host, hosts), 6))
        for host in range(hosts)
    ]
    for key in one:
        together = [share[i][key] for i in range(6) for share in shares]
        np.testing.assert_array_equal(np.concatenate(together), one[key])


@pytest.mark.parametrize(('batch_size', 'hosts'), [(12, 1), (12, 3), (EXAMPLES, 1), (64, 2)])
def test_evaluation_has_every_example_once_in_order_and_masks_the_rest(
    reader, config, batch_size, hosts
):
    config.batch_size = batch_size
    shares = [list(pipeline.evaluation_batches(reader, config, h, hosts)) for h in range(hosts)]
    count = -(-EXAMPLES // batch_size)
    assert {len(share) for share in shares} == {count}
    labels, mask = (
        np.concatenate([share[i][key] for i in range(count) for share in shares])
        for key in ('label', 'mask')
    )
    assert len(mask) == count * batch_size
    assert mask.sum() == EXAMPLES
    assert labels[mask > 0].tolist() == list(range(EXAMPLES))
    assert (mask[EXAMPLES:] == 0).all()


class Holes(ArraySource):
    """Pictures that hold their number, some of which are damaged."""

    def __init__(self, damaged):
        pictures = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 8, 8))
        super().__init__('holes', pictures, np.arange(20), [str(i) for i in range(20)])
        self.damaged = damaged

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return {**record, 'picture': b'broken'} if index in self.damaged else record


class Counted(Holes):
    """Says what was read, and takes a while."""

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


def test_what_nobody_waits_for_is_not_read(config):
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

    with pytest.raises(ValueError, match=r'label: \((20,)?\) beside \((20,)?\)'):
        take(pipeline.training_batches(Reader(Mixed(()), 0.0), config, 0), 2)


def test_the_next_picture_takes_the_place_of_one_that_cannot_be_read(config, caplog):
    config.batch_size = 20
    whole = take(pipeline.training_batches(Reader(Holes(()), 0.0), config, 0), 3)['label']
    reader = Reader(Holes((4, 5, 19)), 0.2)
    labels = take(pipeline.training_batches(reader, config, 0), 3)['label']
    np.testing.assert_array_equal(labels, [{4: 6, 5: 6, 19: 0}.get(i, i) for i in whole])
    assert reader.unreadable == {4, 5, 19}
    # Each is named once, though it was met in three epochs.
    assert sorted(r.getMessage() for r in caplog.records) == [
        f'holes[{i}] cannot be read: it is neither JPEG nor PNG' for i in (19, 4, 5)
    ]


def test_in_evaluation_what_cannot_be_read_is_told_from_filling(config):
    reader = Reader(Holes((4, 19)), 0.2)
    batches = take(pipeline.evaluation_batches(reader, config), 2)
    assert batches['mask'].tolist() == [-1 if i in (4, 19) else float(i < 20) for i in range(24)]


def test_too_many_pictures_that_cannot_be_read_end_the_run(config):
    reader = Reader(Holes((4, 5, 19)), 0.1)
    says = r'3 of 20 pictures cannot be read, more than config.max_unreadable=0.1 .* holes\[\d+\]'
    with pytest.raises(UserError, match=says):
        take(pipeline.training_batches(reader, config, 0), 3)
    with pytest.raises(UserError, match='none of the 20 pictures can be read'):
        Reader(Holes(range(20)), 1.0).read_or_next(3)


def test_a_label_that_is_no_class_is_named(config):
    source = Holes(())
    source.labels = np.where(np.arange(20) == 7, 20, np.arange(20))
    with pytest.raises(UserError, match=r'holes\[7\] has the label 20, but there are 20 classes'):
        list(pipeline.evaluation_batches(Reader(source, 0.0), config))


def test_a_picture_of_several_classes_has_a_row_of_zeros_and_ones(config):
    class Several(Holes):
        def __getitem__(self, index):
            row = np.eye(20, dtype=np.int64)[index] + np.eye(20, dtype=np.int64)[(index + 1) % 20]
            return {**super().__getitem__(index), 'label': row}

    batches = list(pipeline.evaluation_batches(Reader(Several((3,)), 0.1), config))
    assert [b['label'].shape for b in batches] == [(12, 20), (12, 20)]
    assert batches[0]['label'].sum(1).tolist() == [2, 2, 2, 0, 2, 2, 2, 2, 2, 2, 2, 2]
