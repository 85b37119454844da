r"""Xception on ImageNet, as in the paper: sections 4.3 and 4.5, Table 1, Figure 6.

    python -m xception_flax.main --config=configs/imagenet.py --workdir=/data/xception \
        --config.dataset.data_dir=/data/imagenet

Paper: 79.0 % top-1, 94.5 % top-5 (single crop, one model) after 113,000 steps.
Measured: not run; we had neither ImageNet nor a TPU.

The paper gives the optimizer, the learning rate and its decay, L2, dropout and Polyak averaging.
It does not give the batch size, the augmentation, the crop and the decay of the average. Here they
are those of Inception, which it is compared with: 60 workers x 32 images, which fits the axis of
Figure 6; the crops, colours and evaluation of TensorFlow's Inception; 0.9999. Label smoothing (0.1
in the paper of Inception V3) is not mentioned, and is off. Batch norm forgets as in the author's
Keras (0.99; TF-slim's Inception: 0.9997). What was run stays unknown.

Each worker of the paper normalised its own 32 images: `--config.xception.bn_group_size=32` does
the same; the default is the whole batch.
"""

from xception_flax import config as configs


def get_config():
    c = configs.default()
    c.dataset.source = 'imagenet'
    c.batch_size = 1920
    c.total_steps = 113_000
    c.eval_epochs = 2.0
    c.checkpoint_steps = 500
    c.log_steps = 50
    c.dtype = 'bfloat16'
    c.keep_last = 3

    c.protocol = 'inception'
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
