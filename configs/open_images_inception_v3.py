"""Inception V3 on Open Images, in place of JFT: Table 2, Figure 7. See open_images.py.

    python -m xception_flax.main --config=configs/open_images_inception_v3.py \
        --workdir=/data/open_images_inception_v3

Paper: MAP@100 of 6.36 on FastEval14k, after training on JFT.
Measured: not run; we had neither Open Images (565 GiB) nor a TPU.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('open_images.py', __file__)
    c.model = 'inception_v3'
    c.inception_v3.dropout = 0.0
    c.inception_v3.head_bias = -10.0
    c.optimizer.weight_decay = 4e-5
    return c
