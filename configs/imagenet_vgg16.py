"""VGG-16 on ImageNet: the oldest network of the paper's Table 1.

    python -m xception_flax.main --config=configs/imagenet_vgg16.py --workdir=/data/vgg16

Paper: 71.5 % top-1, 90.1 % top-5, as its authors published.
Measured: not run; we had neither ImageNet nor a TPU.

The recipe is that of Simonyan and Zisserman (2014), section 3.1: batches of 256, learning rate 0.01
and L2 5e-4 for 74 epochs. They divided the learning rate by 10 three times, when the accuracy
stopped improving; here it is divided every 20 epochs. They started from a shallower network; here
it is Glorot's initialisation, which they found equally good. They took crops of 224 from images of
256 to 512 pixels; here it is Inception's crop.
"""

from xception_flax import config as configs


def get_config():
    c = configs.start_from('imagenet.py', __file__)
    c.model = 'vgg16'
    c.vgg16.dropout = 0.5
    c.image_size = 224
    c.batch_size = 256
    c.optimizer.weight_decay = 5e-4
    c.schedule.learning_rate = 0.01
    c.schedule.decay_rate = 0.1
    c.schedule.decay_epochs = 20.0
    c.total_steps = 370_000
    c.ema_decay = 0.0
    return c
