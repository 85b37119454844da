"""Xception without residual connections on ImageNet: section 4.6, Figure 9.

    python -m xception_flax.main --config=configs/imagenet_no_residual.py --workdir=/data/plain

Paper: 67 % top-1 after 120,000 steps, read off Figure 9; 79.0 % with them.
Measured: not run; we had neither ImageNet nor a TPU.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.xception.residual = False
    c.total_steps = 120_000
    return c
