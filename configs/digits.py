"""A small Xception on the digits: real data, no download, a minute on two CPU cores.

    python -m xception_flax.main --config=configs/digits.py --workdir=/tmp/digits

Measured: 99.44 % top-1 on the 360 test images (averaged weights, seed 0), in 1 min 14 s on two CPU
cores, compilation included.
"""

from xception_flax import config as configs


def get_config():
    c = configs.default()
    c.dataset.source = 'digits'
    c.dataset.eval_split = 'test'
    c.image_size = 16
    c.batch_size = 128
    c.total_epochs = 40.0
    c.eval_epochs = 4.0
    c.log_epochs = 1.0

    c.xception.stem = 'small'
    c.xception.width = 0.125
    c.xception.middle_repeats = 2
    c.xception.bn_momentum = 0.9

    c.augment.crop = 'pad'
    c.augment.pad = 1
    c.augment.flip = False
    c.crop_fraction = 1.0
    c.loader_threads = 2

    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 1e-4
    c.schedule.name = 'cosine'
    c.schedule.learning_rate = 0.1
    c.schedule.warmup_percent = 7.5
    c.ema_decay = 0.99
    return c
