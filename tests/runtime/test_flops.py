from types import SimpleNamespace

import pytest

from xception_flax import create_model
from xception_flax.runtime import flops


def test_xception_at_299_does_the_known_work():
    # 8,357,403,496 multiply-adds in convolutions and classifier; XLA counts the rest too (batch
    # norm, pooling, activations) and leaves out products with the padding.
    counted = flops.training_flops(create_model('xception', dropout=0.0), 299)
    assert counted == pytest.approx(3 * 2 * 8_357_403_496, rel=0.03)


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('TPU v5 lite', 197e12),
        ('TPU v5p', 459e12),
        ('TPU v4', 275e12),
        ('TPU v4 lite', 138e12),
        ('NVIDIA L4', 121e12),
        ('NVIDIA L40S', None),
        ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('cpu', None),
    ],
)
def test_peaks_are_found_by_the_longest_name(kind, peak):
    assert flops.peak(SimpleNamespace(device_kind=kind)) == peak
