"""ResNet-152 on ImageNet: the strongest competitor in the paper's Table 1.

    python -m xception_flax.main --config=configs/imagenet_resnet152.py --workdir=/data/resnet152

Paper: 77.0 % top-1, 93.3 % top-5, as its authors published.
Measured: not run; we had neither ImageNet nor a TPU.

The recipe is that of He et al. (2015), section 3.4: batches of 256, learning rate 0.1, L2 1e-4,
600,000 steps, no dropout. They divided the learning rate by 10 when the accuracy stopped improving;
here it is divided every 30 epochs. The crop is Inception's, not theirs.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.model = 'resnet152'
    c.image_size = 224
    c.batch_size = 256
    c.optimizer.weight_decay = 1e-4
    c.schedule.learning_rate = 0.1
    c.schedule.decay_rate = 0.1
    c.schedule.decay_epochs = 30.0
    c.total_steps = 600_000
    c.ema_decay = 0.0
    return c
