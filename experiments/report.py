"""Makes a page of tables and curves from the results of runs.

  python -m experiments.report imagenet residual activation --workdir=/data/runs
  python -m experiments.report fashion_mnist --workdir=/tmp/fashion --out=report
  python -m experiments.report /tmp/digits /tmp/grid --out=report
  python -m experiments.report tiny_imagenet

The arguments are studies, whose runs are in WORKDIR (see experiments.sweep), or any folders with
runs. Without --workdir the runs of a study are those that are kept in experiments/STUDY/runs. All
numbers come from the metrics.jsonl and config.json of the runs, and speeds from speed.json (see
experiments.speed). What was not run is marked. OUT (WORKDIR/report by default, else report) gets
report.html, one self-contained file, and report.md with figures/. It needs SciPy and matplotlib:
pip install -e '.[report]'
"""

import pathlib
import tempfile
from typing import TYPE_CHECKING

from absl import flags

from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.runtime import program

if TYPE_CHECKING:
    from experiments.reporting.page import Page

flags.declare_key_flag('workdir')
flags.DEFINE_string('out', None, 'Folder for the pages; WORKDIR/report or report by default.')


def main(*names: str) -> None:
    """Reports by the flags.

    Raises:
      UserError: there is no such study or folder, or a flag is missing.
    """
    import jax  # here, so that mistakes in the flags are reported at once

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to training
    with extras.needed('report', 'the report'):
        from experiments.reporting.page import Page
    from xception_flax.base import paths

    values = flags.FLAGS
    page = Page(
        'Xception and its comparison networks: results',
        'The numbers are read from the files of the runs; those in columns named "paper" are from '
        'the paper. What was not run is marked.',
    )
    for name in names:
        add(page, name, values.workdir)
    out = paths.path(values.out or f'{values.workdir or "."}/report')
    with tempfile.TemporaryDirectory() as temporary:
        here = pathlib.Path(temporary) if paths.in_bucket(out) else out
        page.save(here)
        if here != out:
            paths.upload(here, out)
    print(f'{out / "report.html"} and {out / "report.md"}')


def add(page: 'Page', name: str, workdir: str | None) -> None:
    """Adds a section: a study, or all runs in a folder.

    Raises:
      UserError: there is no such study or folder, or a flag is missing.
    """
    from experiments import studies
    from experiments.reporting import collect, figures, tables
    from xception_flax.base import paths

    folder = paths.path(name)
    if name in studies.STUDIES or not folder.is_dir():
        study = studies.lookup(name)
        kept = pathlib.Path(__file__).with_name(name) / 'runs'
        if not (workdir or kept.is_dir()):
            raise UserError(f'the study {name} needs --workdir=DIR, the folder of its runs')
        folder = paths.path(workdir or kept)
        measured = collect.of_study(study, folder)
    else:
        measured = collect.of_folder(folder)
        variants = tuple(one.variant for one in measured)
        curves = studies.PaperFigure('Curves', '', {variant.name: '' for variant in variants})
        study = studies.Study(folder.name, variants, collect.metrics(measured), None, (curves,))
    shown = [
        tables.results(study, measured),
        tables.comparisons(study, measured),
        tables.costs(study, measured, collect.speed(folder)),
        tables.listing(study, measured),
    ]
    page.section(
        folder.name if name not in studies.STUDIES else name,
        study.title,
        [table for table in shown if table],
        {figure.title: figures.draw(study, figure, measured) for figure in study.figures},
    )


if __name__ == '__main__':
    program.run(main, alone=True, arguments='STUDY...')
