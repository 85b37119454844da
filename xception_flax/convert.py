"""Converts weights: from Keras, timm or a run, to Keras, timm or a folder that is like a run's.

  python -m xception_flax.convert xception.weights.h5 /data/xception     # for evaluate, predict
  python -m xception_flax.convert /tmp/run xception.weights.h5           # for Keras (needs Keras)
  python -m xception_flax.convert /tmp/run xception.safetensors          # for timm
  python -m xception_flax.convert keras/xception /data/xception          # Keras's own, downloaded

SOURCE is a file (.h5, .weights.h5, .keras; .safetensors, .pth), a workdir (its newest checkpoint,
averaged weights), a published name (python -m xception_flax.pretrained lists them), or
NAME=FILE. TARGET's ending says what it becomes.
"""

import sys

from xception_flax.runtime import program


def main(source: str, target: str) -> None:
    """Converts by the arguments."""
    import jax  # after the flags: their mistakes are told at once

    from xception_flax import pretrained

    pretrained.check_target(target)
    model, variables, config = pretrained.load_pretrained(source)
    count = sum(x.size for x in jax.tree.leaves(variables['params']))
    print(f'{source}: {config.model}, {config.dataset.num_classes} classes, {count:,} parameters')
    pretrained.save_pretrained(target, model, variables, config)
    print(f'written to {target}')
    for line in pretrained.differences(target, model, config):
        print(f'note: {line}', file=sys.stderr)


if __name__ == '__main__':
    program.run(main, alone=True, arguments='SOURCE TARGET')
