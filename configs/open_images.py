"""Xception on Open Images, in place of JFT: sections 4.1 and 4.5, Table 2, Figure 7.

    python -m xception_flax.main --config=configs/open_images.py --workdir=/data/open_images

Paper: MAP@100 of 6.70 on FastEval14k, after training on JFT. Neither set is public, and the scale
of the number is not known: only the order of the networks can be compared.
Measured: not run; we had neither Open Images (565 GiB) nor a TPU.

TFDS's open_images_v4 has 1.7 million multi-label training images with 7,186 classes. Labels count
if people have verified them or a machine gives them a confidence of 0.5 or more. The paper gives
RMSprop, its momentum, the learning rate and its decay, L2, averaging and no dropout. The learning
rate decays every 3,000,000 samples; over 30 million steps of 32 it would fall to a fraction of
2e-15, while Figure 7 still rises. The paper may mean steps:
`--config.schedule.decay_steps=3_000_000`. Length (57 epochs), batch size and the initial bias of
the classifier are ours: of 7,186 sigmoids some ten are right for an image, so all start near zero.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.dataset.source = 'tfds'
    c.dataset.name = 'open_images_v4/300k'
    c.loss = 'sigmoid'
    c.best = 'map100_pictures'
    c.total_steps = None
    c.total_examples = 100_000_000

    c.xception.dropout = 0.0
    c.xception.head_bias = -10.0

    c.optimizer.name = 'rmsprop'
    c.optimizer.momentum = 0.9
    c.schedule.learning_rate = 0.001
    c.schedule.decay_rate = 0.9
    c.schedule.decay_epochs = None
    c.schedule.decay_examples = 3_000_000
    return c
