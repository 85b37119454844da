"""Every setting of a run, with its default and its meaning. There are no others.

A file in `configs/` starts from `default()` and changes what differs. A setting is changed on the
command line by its path: `--config.optimizer.momentum=0.95`.

Durations (`total`, `eval`, `checkpoint`, `log`, `schedule.warmup`, `schedule.decay`) are given in
one unit, by the ending of their name: `_steps`, `_epochs`, `_examples`, or `_percent` of the total.
A unit given on the command line replaces the one in the file.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xception_flax import models

UNITS = ('steps', 'epochs', 'examples', 'percent')


def default() -> ConfigDict:
    """The whole schema with its defaults, locked: a new key is an error."""
    c = ConfigDict()
    c.seed = 0  # of initial weights, order of examples, augmentation, dropout
    c.batch_size = 32  # images per step, over all devices and processes
    c.accumulation = 1  # micro-batches per step, to save memory
    # Compute type. With 'bfloat16' parameters and statistics stay float32; 'float64' (everything;
    # on CPU) is for comparisons in which rounding must not count.
    c.dtype = 'float32'
    # Implementation of the operations: 'auto' is the fastest on each kind of device, 'reference' is
    # the one of XLA everywhere. They compute the same, except for rounding.
    c.lowering = 'auto'
    c.image_size = 299  # side of the network's input, in pixels

    add_duration(c, 'total')  # length of the training
    add_duration(c, 'eval')  # interval of evaluations; the end is always evaluated
    add_duration(c, 'checkpoint')  # interval of saving; evaluations and the end are always saved
    add_duration(c, 'log')  # interval of logging the metrics of training batches
    c.keep_last = 3  # newest checkpoints to keep
    c.keep_best = 1  # and the best ones, by the metric `best`
    c.patience = 0  # evaluations in a row without a better one that end the training; 0: none do
    c.best = 'top1'  # 'top1', 'top5', 'loss', 'map100_pictures', ... (training/metrics.py)
    c.tracker = ''  # also log to 'wandb' or 'trackio' (runtime/trackers.py); '' for neither
    c.profile_steps = 0  # steps (after the first ten) to trace for the profiler of TensorBoard

    c.model = 'xception'  # the network; its options are in the section of its name
    for name in models.MODELS:
        c[name] = ConfigDict(models.options(name))

    c.init = ConfigDict()  # what a run starts from
    # Weights that xception_flax.convert reads, or a run; '' for random weights. The network
    # has to be the same. A classifier with another number of classes is initialised.
    c.init.weights = ''
    c.init.new_head = False  # initialise the classifier even if the number of classes is the same
    # Modules that keep their parameters and statistics: 'trunk' (everything but the classifier and
    # its fully connected layers) or names, 'entry_flow,middle_flow/block1'; '' for none.
    c.frozen = ''
    # Whether batch norm normalises by its running statistics and keeps them in all modules, also in
    # those that are trained: `training=False` in Keras's guide to fine-tuning.
    c.frozen_statistics = False

    c.dataset = ConfigDict()
    # 'imagenet', 'tfds', 'folder', 'digits', 'fashion_mnist', 'synthetic'
    c.dataset.source = 'tfds'
    c.dataset.name = ''  # tfds: 'imagenet2012', or with its config 'imagenet_v2/topimages'
    c.dataset.version = ''  # tfds: '5.1.0'; '' for the newest that is prepared
    c.dataset.data_dir = ''  # folder of the data; '' for the default of the source
    # A folder on a disk of this machine, or /dev/shm/NAME: the files of `data_dir`, in a bucket or
    # on a slower disk, that a split is read from are copied there once. '' reads them in place.
    c.dataset.copy_to = ''
    c.dataset.index = ''  # imagenet: folder of indices of large files; '' for the user's cache
    c.dataset.train_split = 'train'
    c.dataset.eval_split = 'validation'
    # folder: the part of the images that is set apart for evaluation, where there are folders of
    # classes, but none of splits; a hash of an image's path decides.
    c.dataset.eval_fraction = 0.0
    # folder: a CSV or text file of images and labels, in place of folders of classes; {split} in
    # it stands for the split.
    c.dataset.labels = ''
    c.dataset.num_classes = placeholder(int)  # None: the number in the data
    c.dataset.num_examples = placeholder(int)  # of the training split; likewise
    # tfds: the feature that holds the labels; '' for the usual: 'label', 'real_label', ...
    c.dataset.label = ''
    c.dataset.confidence = 0.5  # tfds: labels below this confidence are dropped (open_images_v4)
    c.dataset.class_weights = ''  # JSON or CSV: a weight per class in MAP@100; '' for equal ones

    # How images are cropped, resized and coloured: as 'inception' (TensorFlow), 'timm' or
    # 'torchvision' do it, or 'opencv', which is fast. Settings below that are None are those of the
    # protocol (data/protocols.py).
    c.protocol = 'opencv'
    c.augment = ConfigDict()  # of training images; depends on (seed, epoch, example) alone
    c.augment.crop = 'random'  # 'random': a part of the image; 'pad': the whole, shifted; 'none'
    c.augment.area = placeholder(tuple)  # random: area of a crop, as a fraction of the image
    c.augment.aspect = placeholder(tuple)  # random: width / height of a crop
    c.augment.pad = 4  # pad: pixels of zero padding before a random crop
    c.augment.flip = True  # horizontal flip with probability 1/2
    c.augment.brightness = placeholder(float)  # adds up to this, where white is 1
    c.augment.contrast = placeholder(float)  # scales the distance from the mean by 1 +- this
    c.augment.saturation = placeholder(float)  # scales the saturation (HSV) by 1 +- this
    c.augment.hue = placeholder(float)  # rotates the hue by up to this part of the colour circle
    c.augment.randaugment = 0  # number of operations of RandAugment (data/augmentation.py)
    c.augment.magnitude = 9.0  # their strength, up to 10
    c.augment.random_erasing = 0.0  # probability of replacing a random rectangle by noise
    # 'nearest', 'bilinear', 'bicubic', 'area' or 'lanczos'; with 'inception' only 'bilinear'.
    c.interpolation = placeholder(str)
    # Range of the network's input: 'tf' ([-1, 1]), 'unit' ([0, 1]), 'caffe', 'torch'
    c.preprocessing = 'tf'
    c.crop_fraction = placeholder(float)  # evaluation: side of the central crop / side of the image
    # evaluation: crops per image, over which probabilities are averaged: 1, the centre; 10, as in
    # AlexNet's test; 144, as in Inception's (data/images.py).
    c.crops = 1
    c.loader_threads = 16  # per process, to read and decode images
    # Processes that load images, each with its share of the threads; 0: the one that trains does.
    # None: a quarter of the cores if there are 8 or more and 10,000 images, as far as memory goes.
    c.loader_processes = placeholder(int)
    c.max_unreadable = 0.01  # fraction of a split's images that may be unreadable
    c.max_megapixels = 89.0  # an image that declares more is unreadable

    c.loss = 'softmax'  # cross entropy over classes; or 'sigmoid', binary for each class
    # softmax: weights of the classes in the training loss: 'balanced', the same for each class as a
    # whole, or JSON or CSV as for `dataset.class_weights`; '' for equal ones.
    c.loss_weights = ''
    c.auxiliary_weight = 0.4  # weight of the auxiliary classifier's loss (inception_v3.auxiliary)
    c.label_smoothing = 0.0
    c.mixup = 0.0  # alpha of the Beta distribution; 0 for none

    c.optimizer = ConfigDict()
    c.optimizer.name = 'sgd'  # 'sgd', 'rmsprop', 'adamw', 'lars', 'lamb'
    c.optimizer.momentum = 0.9  # sgd, rmsprop, lars
    c.optimizer.nesterov = False  # sgd, lars
    c.optimizer.decay = 0.9  # rmsprop: decay of the mean square
    c.optimizer.beta1 = 0.9  # adamw, lamb
    c.optimizer.beta2 = 0.999  # adamw, lamb
    c.optimizer.epsilon = 1e-8  # rmsprop (inside the root, as in TensorFlow 1), adamw, lamb
    # Of kernels only. For sgd and rmsprop it is L2 in the loss, of gradient weight_decay * w.
    c.optimizer.weight_decay = 0.0
    c.optimizer.decay_depthwise = True  # whether it acts on depthwise kernels, too
    c.optimizer.clip_norm = 0.0  # largest norm of the gradient; 0 for no clipping
    # Learning rate of each block / that of the next one, from the classifier (the full rate) back
    # to the stem.
    c.optimizer.layer_decay = 1.0

    c.schedule = ConfigDict()
    c.schedule.name = 'exponential'  # 'constant', 'exponential', 'cosine'
    c.schedule.learning_rate = 0.045  # at the peak
    c.schedule.decay_rate = 0.94  # exponential: factor per `decay` duration
    c.schedule.staircase = True  # exponential: in steps, not continuously
    c.schedule.final = 0.0  # lowest learning rate, as a fraction of the peak
    add_duration(c.schedule, 'decay')
    add_duration(c.schedule, 'warmup')  # linear, from 0
    c.nonfinite = 'stop'  # a step whose loss or gradient is not finite: 'stop', or 'skip' it
    c.nonfinite_limit = 10  # skipped steps in a row that stop a run nevertheless
    c.ema_decay = 0.9999  # Polyak averaging of weights and statistics; 0 for none
    return c.lock()


def add_duration(section: ConfigDict, name: str) -> None:
    """Adds the duration `name` to the section, in every unit, all unset."""
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
