"""The programs in experiments/ as a whole."""

import ast

import pytest
from helpers import ROOT, start

PROGRAMS = [
    path
    for path in sorted((ROOT / 'experiments').rglob('*.py'))
    if "if __name__ == '__main__':" in path.read_text(encoding='utf-8')
]


def test_a_program_has_its_command_in_its_docstring():
    assert len(PROGRAMS) > 10
    for path in PROGRAMS:
        documentation = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
        relative = path.relative_to(ROOT)
        module = '.'.join(relative.with_suffix('').parts)
        assert f'python -m {module}' in documentation or f'python {relative}' in documentation


@pytest.mark.slow
@pytest.mark.parametrize('path', PROGRAMS, ids=lambda path: path.stem)
def test_help_shows_the_docstring(path, program):
    relative = path.relative_to(ROOT)
    module = '.'.join(relative.with_suffix('').parts)
    text = path.read_text(encoding='utf-8')
    as_module = f'python -m {module}' in text
    output = program(*(('-m', module) if as_module else (str(relative),)), '--help')
    assert ast.get_docstring(ast.parse(text)).splitlines()[0] in output


@pytest.mark.slow
def test_damaged_weights_files_end_in_one_line():
    """A few of the files of the campaign; those of PyTorch need PyTorch."""
    arguments = ('--formats=x.h5,x.weights.h5,x.keras', '--count=10')
    process = start('experiments/faults/weights.py', *arguments)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert output.count(' 10 of ') == 3
