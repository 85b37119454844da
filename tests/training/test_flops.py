import pytest

from xception_flax import create_model
from xception_flax.training import flops


def test_xception_at_299_does_the_known_work():
    assert flops.training_flops(create_model('xception'), 299) == 3 * 2 * 8_357_403_496


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
    assert flops.peak(kind) == peak
