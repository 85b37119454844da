"""Xception on Open Images, in the place of JFT: sections 4.1 and 4.5, Table 2, Figure 7.

    python -m xception_flax.main --config=configs/open_images.py --workdir=/data/open_images

Paper: MAP@100 of 6.70 on FastEval14k, after training on JFT. Neither is public, and the scale of
that number is not known: what is measured here compares with it in the order of networks at most.
Measured: not run; it takes Open Images (565 GiB) and a TPU.

TFDS's open_images_v4 has 1.7 million training pictures with 7,186 classes, several a picture, of
which those count that people have verified or a machine is half sure of. The paper gives RMSprop,
its momentum, the learning rate and its decay, L2, averaging and no dropout. It decays every
3,000,000 samples; over its 30 million steps of 32 that would be down to 2e-15, while Figure 7 still
rises, so that steps may be meant: `--config.schedule.decay_steps=3_000_000`. Length (57 epochs) and
batch are ours.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.dataset.name = 'open_images_v4/300k'
    c.loss = 'sigmoid'
    c.total_steps = None
    c.total_examples = 100_000_000

    c.xception.dropout = 0.0

    c.optimizer.name = 'rmsprop'
    c.optimizer.momentum = 0.9
    c.schedule.learning_rate = 0.001
    c.schedule.decay_rate = 0.9
    c.schedule.decay_epochs = None
    c.schedule.decay_examples = 3_000_000
    return c
