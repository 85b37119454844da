"""What documents refer to exists: links, files, programs, flags, settings, measured numbers."""

import collections
import json
import pathlib
import re
import subprocess

import pytest
from helpers import ROOT

from xception_flax import config as configs
from xception_flax.config import schema

LONGEST_README = 180  # lines
# Raw numbers of the runs that configs/README.md and the docstring of the config report.
MEASURED = {
    'digits': 'experiments/digits/metrics.jsonl',
    'fashion_mnist': 'experiments/fashion_mnist/metrics.jsonl',
    'fashion_mnist_hour': 'experiments/fashion_mnist/hour/metrics.jsonl',
}
PROGRAMS = ('xception_flax', 'experiments')
FOLDERS = (*PROGRAMS, 'configs', 'tests', '.ci', '.github')
FENCE = re.compile(r'^ *```.*?^ *```$', re.M | re.S)


def files(*patterns: str) -> list[pathlib.Path]:
    """The files of the repository, also those that are not committed yet."""
    listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '--', *patterns]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    found = {ROOT / line for line in listed.stdout.splitlines()}
    if listed.returncode:  # an archive without git
        found = {
            path
            for pattern in patterns
            for path in (
                *ROOT.glob(pattern),
                *(p for f in FOLDERS for p in (ROOT / f).rglob(pattern)),
            )
        }
    return sorted(path for path in found if path.exists())


def read(path: pathlib.Path) -> str:
    return path.read_text(encoding='utf-8')


def prose(path: pathlib.Path) -> str:
    """The Markdown of a document or of a notebook."""
    if path.suffix != '.ipynb':
        return read(path)
    cells = json.loads(read(path))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


DOCUMENTS = files('*.md', '*.ipynb')
# Everything that may hold a command: documents, docstrings, the notebooks, the job.
TEXTS = {path: read(path) for path in (*DOCUMENTS, *files('*.py'), ROOT / '.ci' / 'run')}
each_document = pytest.mark.parametrize(
    'document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    found, counts = set(), collections.Counter()
    for heading in re.findall(r'^#+ +(.+)$', FENCE.sub('', text), re.M):
        plain = re.sub(r'!?\[([^]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
        slug = re.sub(r'[^\w\- ]', '', plain).replace(' ', '-')
        found.add(f'{slug}-{counts[slug]}' if counts[slug] else slug)
        counts[slug] += 1
    return found


def links(text: str) -> list[str]:
    """The targets of links and images outside code."""
    prose = re.sub(r'`[^`\n]*`', '``', FENCE.sub('', text))
    patterns = (r'\]\(\s*<?([^)\s>]+)', r'^ *\[[^]]+\]: *(\S+)', r'(?:src|href)="([^"]+)"')
    return [target for pattern in patterns for target in re.findall(pattern, prose, re.M)]


def commands(text: str) -> list[str]:
    """Every command line of the project's programs, from the module on."""
    whole = re.sub(r'\\\n\s*', '', text)
    return re.findall(rf'python -m ((?:{"|".join(PROGRAMS)})\.\w[^\n`]*)', whole)


@each_document
def test_links_lead_to_files_and_headings(document):
    for target in links(prose(document)):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(prose(file)), target


@each_document
def test_files_that_a_document_names_exist(document):
    ours = '|'.join(map(re.escape, FOLDERS))
    for path in re.findall(rf'(?<![\w/.-])((?:{ours})/[\w./*-]*[\w*])', prose(document)):
        assert 'NAME' in path or list(ROOT.glob(path)), path


def test_programs_and_configs_that_commands_name_exist():
    assert len(TEXTS) > 100
    for path, text in TEXTS.items():
        for module in re.findall(rf'python -m ((?:{"|".join(PROGRAMS)})(?:\.[a-z]\w*)+)', text):
            file = ROOT.joinpath(*module.split('.')).with_suffix('.py')
            assert file.exists(), (path, module)
            assert "if __name__ == '__main__':" in read(file), (path, module)
        for config in re.findall(r'--config=(configs/\w+\.py)', text):
            assert config == 'configs/NAME.py' or (ROOT / config).exists(), (path, config)


def test_flags_and_settings_of_commands_are_known():
    source = '\n'.join(text for path, text in TEXTS.items() if path.suffix == '.py')
    flags = {'config', 'help', *re.findall(r"DEFINE_\w+\(\s*'([\w-]+)'", source)}
    settings = set(schema.paths(configs.default()))
    for path, text in TEXTS.items():
        for command in commands(text):
            for flag in re.findall(r'(?<=\s)--([\w.-]+)', command):
                setting = flag.removeprefix('config.')
                known = flag in flags or (setting != flag and setting in settings)
                assert known or setting == 'SETTING', (path, command)


def test_the_readme_is_short():
    assert len(read(ROOT / 'README.md').splitlines()) <= LONGEST_README


def test_every_config_is_in_the_table():
    table = re.findall(r'^\| `(\w+)\.py` \|', read(ROOT / 'configs' / 'README.md'), re.M)
    assert sorted(table) == sorted(file.stem for file in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('config', MEASURED)
def test_measured_accuracies_are_those_of_the_raw_numbers(config):
    last = json.loads(read(ROOT / MEASURED[config]).splitlines()[-1])
    assert last['weights'] == 'averaged'
    top1 = f'{100 * last["top1"]:.2f} %'
    assert f'Measured: {top1}' in read(ROOT / 'configs' / f'{config}.py')
    table = read(ROOT / 'configs' / 'README.md')
    assert re.search(rf'^\| `{config}\.py` \|.*\| {re.escape(top1)}', table, re.M)
