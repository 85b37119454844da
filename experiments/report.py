"""Makes a page of tables and curves from what runs have measured.

  python -m experiments.report imagenet residual activation --workdir=/data/runs
  python -m experiments.report fashion_mnist --workdir=/tmp/fashion --out=report
  python -m experiments.report /tmp/digits /tmp/grid --out=report

It takes studies, whose runs are in WORKDIR (see experiments.sweep), or any folders with runs. All
numbers are read from the runs' own metrics.jsonl and config.json, and speeds from speed.json (see
experiments.speed). What has not been run is called so. OUT (WORKDIR/report) gets report.html, one
file that needs nothing else, and report.md with figures/.
"""

import pathlib

from absl import flags

from xception_flax.runtime import program
from xception_flax.runtime.errors import UserError

flags.declare_key_flag('workdir')
flags.DEFINE_string('out', None, 'Where the pages go; WORKDIR/report by default.')


def main(*names: str) -> None:
    """Reports by the flags.

    Raises:
      UserError: there is no such study or folder, or a flag is missing.
    """
    import jax  # after the flags: their mistakes are told at once

    jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to those who compute
    from experiments.reporting.page import Page

    values = flags.FLAGS
    if not (values.out or values.workdir):
        raise UserError('give --out=DIR; see --help')
    page = Page(
        'Xception and its comparison networks: what was measured',
        "Every number is from the runs' own files, but those in columns called paper, which are "
        "the paper's. What was not run is marked so.",
    )
    for name in names:
        add(page, name, values.workdir)
    out = pathlib.Path(values.out or pathlib.Path(values.workdir) / 'report').expanduser()
    page.save(out)
    print(f'{out / "report.html"} and {out / "report.md"}')


def add(page, name: str, workdir: str | None) -> None:
    """Adds a section to the `Page`: a study's, or a folder's, of all runs in it."""
    from experiments import studies
    from experiments.reporting import collect, figures, tables

    folder = pathlib.Path(name).expanduser()
    if name in studies.STUDIES or not folder.is_dir():
        study = studies.lookup(name)
        if not workdir:
            raise UserError(f'the study {name} needs --workdir=DIR, where its runs are')
        folder = pathlib.Path(workdir).expanduser()
        measured = collect.of_study(study, folder)
    else:
        measured = collect.of_folder(folder)
        variants = tuple(one.variant for one in measured)
        curves = studies.Figure('Curves', '', {variant.name: '' for variant in variants})
        study = studies.Study(folder.name, variants, collect.metrics(measured), None, (curves,))
    shown = [
        tables.results(study, measured),
        tables.comparisons(study, measured),
        tables.costs(study, measured, collect.speed(folder)),
        tables.listing(study, measured),
    ]
    drawings = {f.title: figures.draw(study, f, measured) for f in study.figures}
    page.section(folder.name if name not in studies.STUDIES else name, study.title,
                 [table for table in shown if table], drawings)  # fmt: skip


if __name__ == '__main__':
    program.run(main, alone=True, arguments='STUDY...')
