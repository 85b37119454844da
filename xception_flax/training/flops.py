"""Floating-point operations of a network, and the peak of a device."""

import re

import flax.linen as nn

from xception_flax.models.counts import summarise

# Peak of dense bfloat16 matrix products, FLOP/s for one JAX device (a TPU v2 or v3 chip is two),
# from the data sheets of Google and NVIDIA. The keys are `device_kind` of JAX, or its first words.
PEAKS = {
    'TPU v2': 22.5e12,
    'TPU v3': 61.5e12,
    'TPU v4': 275e12,
    'TPU v4 lite': 138e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
    'NVIDIA A100': 312e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H100 NVL': 835e12,
    'NVIDIA H100': 989e12,
    'NVIDIA H200': 989e12,
    'NVIDIA L4': 121e12,
    'NVIDIA V100': 125e12,
    'Tesla V100': 125e12,
    'Tesla T4': 65e12,
}


def peak(device_kind: str) -> float | None:
    """The peak of a kind of device in FLOP/s, or None if it is not in the table."""
    kinds = [kind for kind in PEAKS if re.match(rf'{kind}($|[ -])', device_kind)]
    return PEAKS[max(kinds, key=len)] if kinds else None


def training_flops(model: nn.Module, image_size: int) -> int:
    """FLOPs to train on one image: three times those of a forward pass, as usual.

    Counts the network's own multiply-adds, not those that a device does in their place.
    """
    return 3 * 2 * summarise(model, image_size).macs
