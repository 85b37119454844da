"""Inception V3 with two fully connected layers on Open Images: section 4.2, Table 2, Figure 8.

    python -m xception_flax.main --config=configs/open_images_inception_v3_fc.py \
        --workdir=/data/open_images_inception_v3_fc

Paper: MAP@100 of 6.50 on FastEval14k, after training on JFT. See open_images.py.
Measured: not run; we had neither Open Images (565 GiB) nor a TPU.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('open_images_inception_v3.py', __file__)
    c.inception_v3.fc_layers = (4096, 4096)
    return c
