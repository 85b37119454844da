import itertools

import numpy as np
import pytest

from xception_flax import config as configs
from xception_flax.data import pipeline
from xception_flax.data.sources.arrays import ArraySource
from xception_flax.runtime.errors import UserError

EXAMPLES = 50


@pytest.fixture
def source():
    """Each picture holds its own number, and so does its label."""
    pictures = np.broadcast_to(np.arange(EXAMPLES, dtype=np.uint8)[:, None, None], (EXAMPLES, 8, 8))
    return ArraySource('numbers', pictures, np.arange(EXAMPLES), [str(i) for i in range(EXAMPLES)])


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


def test_batches_are_uint8_pictures_and_int32_labels(source, config):
    batch = next(pipeline.training_batches(source, config, 0))
    assert (batch['image'].shape, batch['image'].dtype) == ((12, 8, 8, 3), np.uint8)
    assert (batch['label'].shape, batch['label'].dtype) == ((12,), np.int32)


def test_every_epoch_has_every_example_once_in_another_order(source, config):
    labels = take(pipeline.training_batches(source, config, 0), 25)['label'].reshape(6, EXAMPLES)
    for epoch in labels:
        assert sorted(epoch) == list(range(EXAMPLES))
    assert len({tuple(epoch) for epoch in labels}) == 6


def test_order_and_augmentation_depend_on_seed_and_position_alone(source, config):
    once = take(pipeline.training_batches(source, config, 0), 10)
    config.loader_threads = 1
    again = take(pipeline.training_batches(source, config, 0), 10)
    np.testing.assert_array_equal(once['image'], again['image'])
    # The same example is augmented otherwise in another epoch.
    positions = [np.flatnonzero(once['label'] == 7)[i] for i in (0, 1)]
    assert not np.array_equal(*(once['image'][p] for p in positions))
    config.seed = 4
    other = take(pipeline.training_batches(source, config, 0), 10)
    assert not np.array_equal(once['label'], other['label'])


def test_neighbouring_seeds_share_no_epoch(source, config):
    config.batch_size = EXAMPLES
    epochs = []
    for seed in (0, 1, 2):
        config.seed = seed
        labels = take(pipeline.training_batches(source, config, 0), 4)['label']
        epochs += [tuple(epoch) for epoch in labels.reshape(4, EXAMPLES)]
    assert len(set(epochs)) == 12


@pytest.mark.parametrize('start', [12, 60, 7, 5 * EXAMPLES + 3])
def test_going_on_at_a_position_gives_what_would_have_come(source, config, start):
    whole = take(pipeline.training_batches(source, config, 0), 30)
    rest = take(pipeline.training_batches(source, config, start), 3)
    for key in whole:
        np.testing.assert_array_equal(rest[key], whole[key][start : start + 36])


@pytest.mark.parametrize('hosts', [2, 3, 4])
def test_hosts_share_out_the_batches_of_one(source, config, hosts):
    one = take(pipeline.training_batches(source, config, 24), 6)
    shares = [
        list(itertools.islice(pipeline.training_batches(source, config, 24, host, hosts), 6))
        for host in range(hosts)
    ]
    for key in one:
        together = [share[i][key] for i in range(6) for share in shares]
        np.testing.assert_array_equal(np.concatenate(together), one[key])


@pytest.mark.parametrize(('batch_size', 'hosts'), [(12, 1), (12, 3), (EXAMPLES, 1), (64, 2)])
def test_evaluation_has_every_example_once_in_order_and_masks_the_rest(
    source, config, batch_size, hosts
):
    config.batch_size = batch_size
    shares = [list(pipeline.evaluation_batches(source, config, h, hosts)) for h in range(hosts)]
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


def test_a_picture_that_cannot_be_read_is_named(config):
    class Broken(ArraySource):
        def __getitem__(self, index):
            return {'picture': b'broken', 'label': 0}

    source = Broken('broken', np.zeros((3, 8, 8), np.uint8), np.zeros(3, int), ['one'])
    with pytest.raises(UserError, match=r'broken\[0\] cannot be read'):
        list(pipeline.evaluation_batches(source, config))
