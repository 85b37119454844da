r"""Trains the runs of a study that are not done, one after the other.

  python -m experiments.sweep fashion_mnist --workdir=/tmp/fashion
  python -m experiments.sweep imagenet --workdir=/data/runs --set=dataset.data_dir=/data --dry-run
  python -m experiments.sweep grid --workdir=/tmp/grid --base=configs/digits.py \
      --vary=batch_size=64,128 --vary=schedule.learning_rate=0.05,0.1 --seeds=0,1,2

Each run is a process of xception_flax.main in WORKDIR/NAME/seedN, with its output in log.txt there.
The same command again goes on with what was interrupted. A signal is passed on to the run, which
saves; the sweep then ends with status 75. A run that fails is told at the end, with status 1, and
does not hold up the others. Several sweeps may work on one study: none touches what another has.

A long command line may stand in a file: --flagfile=FILE. What else starts runs:

  --launcher=commands                         prints a line for each run that is not done
  --launcher=slurm --slurm=slurm_partition=gpu --slurm=gpus_per_node=8 --slurm=timeout_min=1440
"""

import pathlib
import shlex
from typing import TYPE_CHECKING

from absl import flags

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

if TYPE_CHECKING:
    from experiments.studies.study import Study

flags.declare_key_flag('workdir')
flags.DEFINE_multi_string('set', [], 'A setting of all runs: PATH=VALUE.')
flags.DEFINE_list('seeds', [], "Seeds, in place of the study's.")
flags.DEFINE_string('base', None, 'grid: the config file that all runs start from.')
flags.DEFINE_multi_string('vary', [], 'grid: values of a setting: PATH=VALUE,VALUE,...')
flags.DEFINE_bool('dry_run', False, 'List the runs and how far they are, and start none.')
flags.DEFINE_alias('dry-run', 'dry_run')
flags.DEFINE_enum('launcher', 'local', ['local', 'slurm', 'commands'], 'What starts the runs.')
flags.DEFINE_multi_string('slurm', [], "slurm: a parameter of submitit's executor: NAME=VALUE.")


def main(name: str) -> None:
    """Sweeps by the flags.

    Raises:
      UserError: there is no such study or setting, or runs have failed.
      Stopped: a signal came, or other processes have runs that are not done.
    """
    import jax  # after the flags: their mistakes are told at once

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to the runs
    from experiments.studies import local, settings
    from experiments.studies.runs import runs

    values = flags.FLAGS
    workdir = pathlib.Path(values.workdir).expanduser().absolute()
    overrides = settings.assignments(values.set)
    chosen = runs(_study(name), workdir, tuple(map(int, values.seeds)), overrides)
    for run in chosen:
        _ = run.config  # a mistake in the last run is told before the first begins
    if values.dry_run:
        for run in chosen:
            print(f'{run.name}: {run.standing()}{", in use" if local.in_use(run) else ""}')
    elif values.launcher == 'commands':
        for run in chosen:
            if not run.standing().done:
                print(shlex.join(['python', *run.command[1:]]))
    elif values.launcher == 'slurm':
        from experiments.studies import slurm

        parameters = settings.assignments(values.slurm)
        for run, job in slurm.submit(chosen, workdir / 'slurm', parameters):
            print(f'{run.name}: job {job.job_id}')
    else:
        local.Sweep(chosen).go()


def _study(name: str) -> 'Study':
    from experiments.studies import ACCURACY, lookup, settings, study

    values = flags.FLAGS
    if name != 'grid':
        if values.base or values.vary:
            raise UserError('--base and --vary are for the study grid')
        return lookup(name)
    if not (values.base and values.vary):
        raise UserError('grid takes --base=FILE and --vary=PATH=VALUE,VALUE,...; see --help')
    variants = study.grid(values.base, settings.axes(values.vary))
    return study.Study('a grid', variants, ACCURACY)


if __name__ == '__main__':
    program.run(main, needs=('workdir',), alone=True, arguments='STUDY')
