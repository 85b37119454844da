"""Measures a trained network on an evaluation split.

  python -m xception_flax.evaluate --workdir=/tmp/digits
  python -m xception_flax.evaluate --workdir=/tmp/digits --step=113
  python -m xception_flax.evaluate --weights=xception.weights.h5 --config=configs/imagenet.py \
      --config.dataset.data_dir=/data

The network is that of a run, or of weights that xception_flax.convert reads. The settings are its
own, and --config.SETTING=VALUE changes them: --config.dataset.data_dir=NEW for data that has moved.
With --config=FILE the data is that config's; size, crop and protocol of the images stay the
network's. Test sets with the classes of ImageNet are named in the config:

  python -m xception_flax.evaluate --workdir=/tmp/imagenet --config=configs/imagenet.py \
      --config.dataset.source=tfds --config.dataset.name=imagenet_v2/matched-frequency \
      --config.dataset.eval_split=test

  imagenet_v2/..., imagenet_sketch, imagenet2012_corrupted/fog_3   as ImageNet itself
  imagenet2012_real         any label of an image is right; images without one do not count
  imagenet_a, imagenet_r    among all 1000 classes, and among the 200 that occur
"""

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.adopt_module_key_flags(program)
flags.DEFINE_string('weights', None, 'Weights to measure, in place of --workdir.')
flags.DEFINE_integer('step', None, 'Which checkpoint; the newest by default.')
flags.DEFINE_enum('crops', None, ('1', '10', '144'), 'Crops per image, in place of config.crops.')
flags.DEFINE_string('exclude', None, 'File of images that do not count: a name or number per line.')


def main() -> None:
    """Evaluates by the flags."""
    values = flags.FLAGS
    if bool(values.weights) == bool(values.workdir):
        raise UserError('give either --workdir=DIR or --weights=FILE')

    from xception_flax.config import reading
    from xception_flax.training.standalone import evaluate_networks, settings_for
    from xception_flax.weights.loading import allow_float64, load

    where = values.weights or values.workdir
    allow_float64(where)
    net = load(where, values.step)
    config = settings_for(net.config, *reading.command_line())
    nets = {'loaded': net}
    if values.workdir:
        averaged = {'averaged': net} if net.config.ema_decay else {}
        nets = {'live': load(where, values.step, 'live'), **averaged}
    evaluate_networks(nets, config, int(values.crops) if values.crops else None, values.exclude)


if __name__ == '__main__':
    program.run(main, changes=True)
