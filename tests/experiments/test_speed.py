"""Speed of networks side by side."""

import pytest

from experiments import speed
from experiments.studies.study import Variant


@pytest.mark.slow
def test_a_network_trains_in_turns():
    small = {'model': 'lenet5', 'image_size': 32, 'batch_size': 16}
    network = speed.Network(Variant('lenet', 'LeNet-5', 'configs/digits.py', small), 10, {})
    for _ in range(3):
        network.turn(2)
    found = network.results()
    assert int(network.state.step) == 2 + 3 * 2
    assert sorted(found['turns'])[1] == found['steps_per_second'] > 0
    assert (found['batch_size'], found['image_size'], found['dtype']) == (16, 32, 'float32')
