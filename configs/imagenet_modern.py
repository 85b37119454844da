"""Xception of 2017 with a recipe of today on ImageNet; the aim is 81 % top-1.

    python -m xception_flax.main --config=configs/imagenet_modern.py --workdir=/data/modern

Paper: 79.0 % with its own recipe. There is no published result of this network with this recipe;
such recipes raised a relative, Xception65, from 79.6 to 83.2 % (timm).
Measured: not run; we had neither ImageNet nor a TPU. All values are therefore guesses.

Label smoothing, mixup, RandAugment, random erasing, cosine with warm-up, 300 epochs.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.total_epochs = 300.0
    c.total_steps = None
    c.batch_size = 1024

    c.protocol = 'timm'
    c.augment.randaugment = 2
    c.augment.magnitude = 9.0
    c.augment.random_erasing = 0.25
    c.crop_fraction = 0.897
    c.mixup = 0.2
    c.label_smoothing = 0.1

    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 4e-5
    c.schedule.name = 'cosine'
    c.schedule.learning_rate = 0.4
    c.schedule.decay_epochs = None
    c.schedule.warmup_epochs = 5.0
    return c
