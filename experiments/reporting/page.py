"""A report as a Markdown page with images, and as one self-contained HTML page."""

import html
import pathlib
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.reporting import figures as figure_files
from experiments.reporting.tables import Table

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5d6873; --line: #d9dee3;
  --paper: #fff; --band: #f4f6f8; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa6b2; --line: #343b43; --paper: #14181c; --band: #1c2228;
    --warn: #e0ac4d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 74rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1.5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--line);
  vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
th:first-child { text-align: left; font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  body { padding-top: 1rem; }
  th, td { padding-right: .7rem; }
  th:first-child { white-space: normal; min-width: 7.5rem; } }
.missing { color: var(--warn); font-style: italic; }
.note { color: var(--soft); font-size: .88rem; max-width: 46rem; margin: .5rem 0; }
.figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; max-width: 36rem; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: system-ui, sans-serif; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
code { font-size: .9em; background: var(--band); padding: .1em .3em; border-radius: 3px; }
"""


class Page:
    """Sections of tables and figures, in Markdown and HTML."""

    def __init__(self, title: str, introduction: str):
        self._markdown = [f'# {title}\n\n{introduction}\n']
        self._html = [f'<h1>{html.escape(title)}</h1>\n<p>{html.escape(introduction)}</p>']
        self._title = title
        self._images: dict[str, Figure] = {}

    def section(
        self, name: str, title: str, tables: Sequence[Table], figures: dict[str, Figure]
    ) -> None:
        """Adds a section.

        Args:
          name: prefix of its image files.
          title: its heading.
          tables: its tables.
          figures: its figures by title; they come after the first table.
        """
        named = {f'{name}-{_slug(heading)}': heading for heading in figures}
        self._images |= {key: figures[heading] for key, heading in named.items()}
        first, *rest = tables
        images = '\n\n'.join(f'![{heading}](figures/{key}.png)' for key, heading in named.items())
        images += '\n' if images else ''
        self._markdown += [f'## {title}\n', first.markdown(), images]
        self._markdown += [table.markdown() for table in rest]
        inline = ''.join(
            f'<figure><figcaption>{html.escape(heading)}</figcaption>'
            f'{figure_files.inline_svg(figures[heading], key, html.escape(heading))}</figure>\n'
            for key, heading in named.items()
        )
        inline = f'<h3>Curves</h3>\n<div class="figures">\n{inline}</div>' if named else ''
        self._html += [f'<h2>{html.escape(title)}</h2>', first.html(), inline]
        self._html += [table.html() for table in rest]

    def save(self, folder: pathlib.Path) -> None:
        """Writes report.html, report.md and the images of the latter in figures/."""
        (folder / 'figures').mkdir(parents=True, exist_ok=True)
        for name, figure in self._images.items():
            figure_files.save(figure, folder / 'figures' / name)
        (folder / 'report.md').write_text('\n'.join(self._markdown), encoding='utf-8')
        body = '\n'.join(self._html)
        page = (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html.escape(self._title)}</title>\n<style>{STYLE}</style>\n</head>\n'
            f'<body>\n{body}\n</body>\n</html>\n'
        )
        (folder / 'report.html').write_text(page, encoding='utf-8')


def _slug(text: str) -> str:
    return ''.join(c if c.isalnum() else '_' for c in text.lower())
