"""Describes a network: its layers, what they cost, and a drawing.

  python -m xception_flax.describe --config=configs/imagenet.py
  python -m xception_flax.describe --config=configs/imagenet.py --config.xception.residual=False
  python -m xception_flax.describe --config=configs/imagenet.py --save=a.svg --save=a.png
  python -m xception_flax.describe --workdir=/tmp/digits --json

The network is that of a config, of a run (--workdir) or of a weights file (--weights). Nothing is
computed: it takes seconds, and no accelerator.
"""

import json
import pathlib

from absl import flags

from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.declare_key_flag('config')
flags.declare_key_flag('workdir')
flags.DEFINE_string('weights', None, 'Weights that convert reads, whose network to describe.')
flags.DEFINE_multi_string('save', [], 'Draw it to this .svg or .png; may be given several times.')
flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')


def main() -> None:
    """Describes by the flags."""
    values = flags.FLAGS
    for path in values.save:
        if pathlib.Path(path).suffix not in ('.png', '.svg'):
            raise UserError(f'--save={path} ends neither in .svg nor in .png')
    if sum(bool(source) for source in (values.config, values.workdir, values.weights)) != 1:
        raise UserError('give one of --config, --workdir and --weights; see --help')

    import jax

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to programs that compute
    from xception_flax.analysis import networks, tables
    from xception_flax.models.counts import summarise

    config, model = networks.choose(values.config, values.workdir, values.weights)
    network = summarise(model, config.image_size)
    if values.json:
        print(json.dumps(tables.as_dict(config, network)))
    else:
        tables.print_network(config, network)
    for path in values.save:
        with extras.needed('train', f'--save={path}'):
            from xception_flax.analysis import drawing
        drawing.draw(model, network, config.image_size, pathlib.Path(path))
        if not values.json:
            print(f'drawn: {path}')


if __name__ == '__main__':
    program.run(main, needs=(), alone=True)
