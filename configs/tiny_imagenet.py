r"""A small Xception on Tiny ImageNet: 200 of ImageNet's classes, 64x64 pixels, read as 32x32.

    python -m xception_flax.main --config=configs/tiny_imagenet.py --workdir=/tmp/tiny \
        --config.dataset.data_dir=tiny-imagenet-200/train

It is Xception in experiments/tiny_imagenet/DESIGN.md. A tenth of the training images is set apart
for evaluation; the published validation images are for `xception_flax.evaluate`, once.
Measured: not run yet.
"""

from xception_flax import config as configs


def get_config():
    c = configs.default()
    c.dataset.source = 'folder'
    c.dataset.eval_fraction = 0.1
    c.image_size = 32
    c.batch_size = 128
    c.total_epochs = 10.0
    c.eval_epochs = 1.0
    c.log_steps = 50

    c.xception.stem = 'small'
    c.xception.width = 0.16
    c.xception.bn_momentum = 0.9
    c.xception.dropout = 0.0

    c.augment.area = (0.25, 1.0)
    c.crop_fraction = 1.0
    c.loader_threads = 2

    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 5e-4
    c.schedule.name = 'cosine'
    c.schedule.learning_rate = 0.2
    c.schedule.warmup_percent = 5.0
    c.ema_decay = 0.999
    return c
