"""Xception with ELU between depthwise and pointwise on ImageNet: section 4.7, Figure 10.

    python -m xception_flax.main --config=configs/imagenet_elu.py --workdir=/data/elu

Paper: 78.0 % top-1 after 138,000 steps, read off Figure 10; 79.0 % with nothing between them.
Measured: not run; we had neither ImageNet nor a TPU.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.xception.intermediate = 'elu'
    c.total_steps = 138_000
    return c
