"""Xception on ImageNet, as in the paper: sections 4.3 and 4.5, Table 1, Figure 6.

    python -m xception_flax.main --config=configs/imagenet.py --workdir=/mnt/bucket/xception

Paper: 79.0 % top-1, 94.5 % top-5 (single crop, one model) after 113,000 steps.
Measured: not run; it takes ImageNet and a TPU.

The paper gives the optimizer, the learning rate and its decay, L2, dropout and Polyak averaging. It
leaves out, and the values here are: the batch (60 workers x 32, Inception V3's and what Figure 6's
axis fits), augmentation and single crop (Inception's), decay of the average (0.9999, Inception's).
Each worker of the paper normalised its own 32 pictures: `--config.xception.bn_group_size=32` does
the same; the default is the whole batch.
"""

from xception_flax import config as configs


def get_config():
    c = configs.default()
    c.dataset.source = 'tfds'
    c.dataset.name = 'imagenet2012'
    c.batch_size = 1920
    c.total_steps = 113_000
    c.eval_epochs = 2.0
    c.checkpoint_steps = 500
    c.log_steps = 50
    c.dtype = 'bfloat16'
    c.keep_last = 3

    c.xception.dropout = 0.5

    c.optimizer.name = 'sgd'
    c.optimizer.momentum = 0.9
    c.optimizer.weight_decay = 1e-5
    c.schedule.name = 'exponential'
    c.schedule.learning_rate = 0.045
    c.schedule.decay_rate = 0.94
    c.schedule.decay_epochs = 2.0
    c.ema_decay = 0.9999
    return c
