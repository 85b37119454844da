"""Every setting of a run, with its default and its meaning. There are no others.

A file in `configs/` starts from `default()` and changes what differs. A setting is changed on the
command line by its path: `--config.optimizer.momentum=0.95`.

Durations (`total`, `eval`, `checkpoint`, `log`, the schedule's `warmup` and `decay`) are given in
one unit, by the ending of their name: `_steps`, `_epochs`, `_examples`, or `_percent` of the total.
A unit given on the command line takes the place of the file's.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xception_flax import models

UNITS = ('steps', 'epochs', 'examples', 'percent')


def default() -> ConfigDict:
    """The whole schema with its defaults, locked: a new key is an error."""
    c = ConfigDict()
    c.seed = 0  # of initial weights, order of examples, augmentation, dropout
    c.batch_size = 32  # pictures per step, over all devices and hosts
    c.accumulation = 1  # micro-batches that a step is made of, to save memory
    # Compute type. With 'bfloat16' parameters and statistics stay float32; 'float64' (all of it; on
    # CPU) is for comparisons in which rounding must not count.
    c.dtype = 'float32'
    # What operations are compiled to: 'auto' for what is quickest on each kind of device,
    # 'reference' for XLA's own everywhere. They compute the same, but for rounding.
    c.lowering = 'auto'
    c.image_size = 299  # side of the network's input, in pixels

    add_duration(c, 'total')  # length of the training
    add_duration(c, 'eval')  # how often to evaluate; the end is always evaluated
    add_duration(c, 'checkpoint')  # how often to save; evaluations and the end are always saved
    add_duration(c, 'log')  # how often to log the training's own metrics
    c.keep_last = 3  # newest checkpoints to keep
    c.keep_best = 1  # and those of the best top-1
    c.profile_steps = 0  # trace so many steps (after ten) for TensorBoard's profiler

    c.model = 'xception'  # the network; its options are in the section of its name
    for name in models.MODELS:
        c[name] = ConfigDict(models.options(name))

    c.init = ConfigDict()  # what a run starts from, which is then its own
    # A weights file of Keras or timm, or the workdir of a run; '' to draw all weights. The network
    # has to be theirs. A classifier of another number of classes is drawn anew.
    c.init.weights = ''
    c.init.new_head = False  # draw the classifier anew also where the number of classes agrees
    # What does not learn and normalises by its running statistics: 'trunk' (all but the classifier
    # and its fully connected layers) or modules, 'entry_flow,middle_flow/block1'; '' for nothing.
    c.frozen = ''

    c.dataset = ConfigDict()
    c.dataset.source = 'tfds'  # 'tfds', 'folder', 'digits', 'fashion_mnist', 'synthetic'
    c.dataset.name = ''  # tfds: 'imagenet2012', or with its config 'imagenet_v2/topimages'
    c.dataset.version = ''  # tfds: '5.1.0'; '' for the newest that is prepared
    c.dataset.data_dir = ''  # where the data is; '' for the source's usual place
    c.dataset.train_split = 'train'
    c.dataset.eval_split = 'validation'
    c.dataset.num_classes = placeholder(int)  # None: what the data says
    c.dataset.num_examples = placeholder(int)  # of the training split; likewise
    # tfds: the feature that holds the classes; '' for the usual: 'label', 'real_label', ...
    c.dataset.label = ''
    c.dataset.confidence = 0.5  # tfds: a class that is less sure than this is none (open_images_v4)
    # JSON or CSV of weights of classes in MAP@100 (data/class_weights.py); '' for equal ones.
    c.dataset.class_weights = ''

    c.augment = ConfigDict()  # of training pictures, drawn from (seed, epoch, example) alone
    c.augment.crop = 'inception'  # 'inception': random area and aspect; 'pad'; 'none'
    c.augment.area = (0.05, 1.0)  # inception: share of the picture that a crop covers
    c.augment.aspect = (3 / 4, 4 / 3)  # inception: width / height of a crop
    c.augment.pad = 4  # pad: pixels of zero around the picture before a random crop
    c.augment.flip = True  # left to right, every second time
    c.augment.brightness = 0.0  # adds up to so much, of 1 (Inception: 32/255)
    c.augment.contrast = 0.0  # multiplies by 1 +- so much, around the mean
    c.augment.saturation = 0.0  # multiplies by 1 +- so much, around grey (Inception: 0.5)
    c.augment.hue = 0.0  # turns by up to so much of the colour circle
    c.augment.randaugment = 0  # RandAugment's number of operations (data/augmentation.py)
    c.augment.magnitude = 9.0  # and their strength, up to 10
    c.augment.random_erasing = 0.0  # how often a random rectangle is replaced by noise
    c.interpolation = 'bilinear'  # 'nearest', 'bilinear', 'bicubic', 'area' or 'lanczos'
    c.preprocessing = 'tf'  # pixels as the network takes them: 'tf' ([-1, 1]), 'caffe', 'torch'
    c.crop_fraction = 0.875  # evaluation: side of the central crop, of the resized picture's
    # evaluation: crops of a picture over which probabilities are averaged: 1, the centre; 10,
    # AlexNet's; 144, Inception's (data/pictures.py).
    c.crops = 1
    c.loader_threads = 16  # per host, to read and decode pictures
    c.max_unreadable = 0.01  # share of a split's pictures that may be damaged; more end the run

    c.loss = 'softmax'  # cross entropy over classes; or 'sigmoid', one for each class
    c.auxiliary_weight = 0.4  # of an auxiliary classifier's loss (inception_v3.auxiliary)
    c.label_smoothing = 0.0
    c.mixup = 0.0  # alpha of the Beta distribution; 0 for none

    c.optimizer = ConfigDict()
    c.optimizer.name = 'sgd'  # 'sgd', 'rmsprop', 'adamw', 'lars', 'lamb'
    c.optimizer.momentum = 0.9  # sgd, rmsprop, lars
    c.optimizer.nesterov = False  # sgd, lars
    c.optimizer.decay = 0.9  # rmsprop: of the mean square
    c.optimizer.beta1 = 0.9  # adamw, lamb
    c.optimizer.beta2 = 0.999  # adamw, lamb
    c.optimizer.epsilon = 1e-8  # rmsprop (inside the root, as in TensorFlow), adamw, lamb
    c.optimizer.weight_decay = 0.0  # of kernels only; L2 in the loss for sgd and rmsprop
    c.optimizer.clip_norm = 0.0  # of the whole gradient; 0 for none
    # The learning rate of each block, as a share of that of the block after it, from the classifier
    # (all of the rate) back to the stem.
    c.optimizer.layer_decay = 1.0

    c.schedule = ConfigDict()
    c.schedule.name = 'exponential'  # 'constant', 'exponential', 'cosine'
    c.schedule.learning_rate = 0.045  # at the peak
    c.schedule.decay_rate = 0.94  # exponential: the factor, once per `decay` duration
    c.schedule.staircase = True  # exponential: at once, not little by little
    c.schedule.final = 0.0  # the least that it sinks to, as a share of the peak
    add_duration(c.schedule, 'decay')
    add_duration(c.schedule, 'warmup')  # linear, from 0
    # A step whose loss or gradient is not finite: 'stop', or 'skip' it, up to so many in a row.
    c.nonfinite = 'stop'
    c.nonfinite_limit = 10
    c.ema_decay = 0.9999  # Polyak averaging of weights and statistics; 0 for none
    return c.lock()


def add_duration(section: ConfigDict, name: str) -> None:
    """Adds `name` in every unit to the section, none of them set."""
    section[f'{name}_steps'] = placeholder(int)
    section[f'{name}_epochs'] = placeholder(float)
    section[f'{name}_examples'] = placeholder(int)
    if name != 'total':
        section[f'{name}_percent'] = placeholder(float)


def paths(config: ConfigDict, prefix: str = '') -> list[str]:
    """The path of every setting, such as 'optimizer.momentum'."""
    found: list[str] = []
    for key, value in config.items():
        inner = isinstance(value, ConfigDict)
        found += paths(value, f'{prefix}{key}.') if inner else [prefix + key]
    return found
