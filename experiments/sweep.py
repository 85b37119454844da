r"""Trains the runs of a study that are not done, one after the other.

  python -m experiments.sweep fashion_mnist --workdir=/tmp/fashion
  python -m experiments.sweep imagenet --workdir=/data/runs --set=dataset.data_dir=/data --dry-run
  python -m experiments.sweep grid --workdir=/tmp/grid --base=configs/digits.py \
      --vary=batch_size=64,128 --vary=schedule.learning_rate=0.05,0.1 --seeds=0,1,2

Each run is a process of xception_flax.main in WORKDIR/NAME/seedN, which prints to log.txt there.
The same command resumes what was interrupted. The sweep passes a signal on to the run, which saves,
and then ends with status 75. When a run fails, the others are still trained; the sweep then reports
the failure and ends with status 1. Several sweeps may train one study together: each skips the runs
of the others.

--flagfile=FILE reads a long command line from a file. Other ways to start the runs:

  --launcher=commands                         prints a command for each run that is not done
  --launcher=slurm --slurm=slurm_partition=gpu --slurm=gpus_per_node=8 --slurm=timeout_min=1440
  --launcher=xpk --xpk=cluster=NAME --xpk=tpu-type=v5litepod-16 --xpk=docker-image=IMAGE
                                              submits to GKE; see experiments/launch/README.md
"""

import pathlib
import shlex
from typing import TYPE_CHECKING

from absl import flags

from xception_flax.base.errors import UserError
from xception_flax.runtime import program

if TYPE_CHECKING:
    from experiments.studies.study import Study

flags.declare_key_flag('workdir')
flags.DEFINE_multi_string('set', [], 'A setting of all runs: PATH=VALUE.')
flags.DEFINE_list('seeds', [], "Seeds, in place of the study's.")
flags.DEFINE_string('base', None, 'grid: the config file that all runs start from.')
flags.DEFINE_multi_string('vary', [], 'grid: values of a setting: PATH=VALUE,VALUE,...')
flags.DEFINE_bool('dry_run', False, 'List the runs and their progress; start none.')
flags.DEFINE_alias('dry-run', 'dry_run')
flags.DEFINE_enum(
    'launcher', 'local', ['local', 'slurm', 'xpk', 'commands'], 'How to start the runs.'
)
flags.DEFINE_multi_string('slurm', [], "slurm: a parameter of submitit's executor: NAME=VALUE.")
flags.DEFINE_multi_string('xpk', [], "xpk: an argument of 'xpk workload create': NAME=VALUE, NAME.")


def main(name: str) -> None:
    """Sweeps by the flags.

    Raises:
      UserError: there is no such study or setting, or runs have failed.
      Stopped: a signal came, or other processes are training runs that are not done.
    """
    import jax  # here, so that mistakes in the flags are reported at once

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to the runs
    from experiments.studies import local, settings
    from experiments.studies.trials import trials
    from xception_flax.base import paths

    values = flags.FLAGS
    _check_launcher()
    workdir = paths.folder(values.workdir, writing=True)
    overrides = settings.assignments(values.set)
    chosen = trials(_study(name), workdir, tuple(map(int, values.seeds)), overrides)
    for trial in chosen:
        _ = trial.config  # a mistake in the last run is reported before the first one starts
    if values.dry_run:
        for trial in chosen:
            print(f'{trial.name}: {trial.standing()}{", in use" if local.in_use(trial) else ""}')
    elif values.launcher == 'commands':
        for trial in chosen:
            if not trial.standing().done:
                print(shlex.join(['python', *trial.command[1:]]))
    elif values.launcher == 'slurm':
        from experiments.studies import slurm

        parameters = settings.assignments(values.slurm)
        logs = pathlib.Path('slurm').absolute() if paths.in_bucket(workdir) else workdir / 'slurm'
        for trial, job in slurm.submit(chosen, logs, parameters):
            print(f'{trial.name}: job {job.job_id}')
    elif values.launcher == 'xpk':
        from experiments.studies import xpk

        for trial in xpk.submit(chosen, values.xpk):
            print(f'{trial.name}: workload {xpk.name(trial)}', flush=True)
    else:
        local.Sweep(chosen).go()


def _check_launcher() -> None:
    """Checks that the arguments of a launcher are those of the chosen one."""
    values = flags.FLAGS
    for launcher in ('slurm', 'xpk'):
        if values[launcher].value and values.launcher != launcher:
            raise UserError(f'--{launcher} is for --launcher={launcher}; give that, too')
    for argument in values.xpk:
        if argument.startswith('-'):
            raise UserError(f'--xpk={argument}: leave out the dashes before its name')


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
