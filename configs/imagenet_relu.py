"""Xception with ReLU between depthwise and pointwise on ImageNet: section 4.7, Figure 10.

    python -m xception_flax.main --config=configs/imagenet_relu.py --workdir=/data/relu

Paper: 77.1 % top-1 after 160,000 steps, read off Figure 10; 79.0 % with nothing between them.
Measured: not run; we had neither ImageNet nor a TPU.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.xception.intermediate = 'relu'
    c.total_steps = 160_000
    return c
