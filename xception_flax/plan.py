r"""Compiles a run for a TPU slice that is not there, and reports memory and estimated time.

  pip install -e '.[tpu]'
  python -m xception_flax.plan --config=configs/imagenet.py --topology=v5e:4x4
  python -m xception_flax.plan --config=configs/imagenet.py --topology=v5p:2x2x2 \
      --config.batch_size=2048 --compare=configs/imagenet_inception_v3.py
  python -m xception_flax.plan --config=configs/imagenet.py --topology=v5e:4x4 --slices=2

The training and the evaluation step are compiled by the TPU compiler, on any machine and for any
number of chips; nothing is computed, and no data is needed. Memory is what the compiler allocates.
All other figures are estimates for the images processed at once, a micro-batch or one crop of each:
memory traffic is the estimate of XLA, cycles are the sum of the compiler's estimates per operation;
of our kernels, for which it has none, they are the instructions that it schedules. They are not
measurements, and leave out overlap and waiting, such as for collectives and for the data-centre
network, over which several slices (multislice) exchange the sums of their gradients.
"""

import json

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

flags.declare_key_flag('config')
flags.DEFINE_string('topology', None, 'The slice: v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:8x8, ...')
flags.DEFINE_integer('slices', 1, 'Number of such slices.', lower_bound=1)
flags.DEFINE_string('compare', None, 'Another config file, to compare with.')
flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')


def main() -> None:
    """Plans by the flags."""
    values = flags.FLAGS
    if not values.topology:
        raise UserError('--topology is missing, such as --topology=v5e:4x4; see --help')

    import jax

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to programs that compute
    # A program compiled for TPU cannot be loaded here.
    jax.config.update('jax_enable_compilation_cache', False)
    from xception_flax.analysis import plan_tables, plans, slices
    from xception_flax.config import reading

    configs = {'config': values.config}
    if values.compare:
        configs['compare'] = reading.read_file(values.compare)
    where = slices.describe(values.topology, values.slices)
    found = {name: plans.make(config, where) for name, config in configs.items()}
    if values.json:
        print(json.dumps({name: plan_tables.as_dict(plan) for name, plan in found.items()}))
    else:
        plan_tables.print_plans(found)


if __name__ == '__main__':
    program.run(main, needs=('config',), alone=True)
