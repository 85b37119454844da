"""Inception V3 on ImageNet, as in the paper: the same recipe, except for L2. Table 1, Figure 6.

    python -m xception_flax.main --config=configs/imagenet_inception_v3.py --workdir=/data/inception

Paper: 78.2 % top-1, 94.1 % top-5, after 119,000 steps, without the auxiliary classifier.
Measured: not run; we had neither ImageNet nor a TPU.

The network is that of TF-slim, which has this accuracy; `--config.inception_v3.variant=keras1` has
the number of parameters in Table 3.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.model = 'inception_v3'
    c.inception_v3.auxiliary = False
    c.inception_v3.dropout = 0.5
    c.optimizer.weight_decay = 4e-5
    c.total_steps = 119_000
    return c
