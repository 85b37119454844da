"""Converts trained networks: from Keras, PyTorch, the hub or a run, to these or to a program.

  python -m xception_flax.convert xception.weights.h5 /data/xception   # for evaluate, predict
  python -m xception_flax.convert /tmp/run xception.weights.h5         # for Keras (needs Keras)
  python -m xception_flax.convert /tmp/run xception.safetensors        # for timm
  python -m xception_flax.convert keras/xception /data/xception        # published, downloaded
  python -m xception_flax.convert /tmp/run xception.onnx               # a program; or .stablehlo
  python -m xception_flax.convert /tmp/run /data/hub --hub             # for timm's local-dir:
  python -m xception_flax.convert /tmp/run hf-hub:OWNER/NAME           # to the Hugging Face hub
  python -m xception_flax.convert --list                               # all published weights

SOURCE is a file of Keras or PyTorch, the folder of a run (its newest checkpoint, averaged weights),
a published name, hf-hub:OWNER/NAME, or NAME=FILE. The ending of TARGET says the format.
"""

import sys

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.DEFINE_bool('hub', False, 'Write a folder as timm keeps models on the hub.')
flags.DEFINE_bool('list', False, 'Print the published weights, with accuracy and licence.')


def main(*arguments: str) -> None:
    """Converts by the arguments."""
    if flags.FLAGS.list:
        from xception_flax.weights import published

        print(published.table())
        return
    if len(arguments) != 2:
        raise UserError('give SOURCE and TARGET; see --help')
    source, target = arguments

    import jax

    from xception_flax.weights import saving
    from xception_flax.weights.loading import allow_float64, load

    for_hub = flags.FLAGS.hub
    saving.check_target(target, for_hub)
    allow_float64(source)
    net = load(source)
    count = sum(x.size for x in jax.tree.leaves(net.variables['params']))
    print(f'{source}: {net.config.model}, {net.model.num_classes} classes, {count:,} parameters')
    print(f'written to {net.save(target, for_hub)}')
    for line in saving.differences(target, net.model, net.config, for_hub):
        print(f'note: {line}', file=sys.stderr)


if __name__ == '__main__':
    program.run(main, alone=True, arguments='[SOURCE TARGET]')
