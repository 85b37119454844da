"""The layout of the package: imports go down one list, and in no circle."""

import ast
import pathlib

import xception_flax

PACKAGE = pathlib.Path(xception_flax.__file__).parent
# From top to bottom, as README.md has it. The programs at the root of the package stand above all.
LAYERS = (
    'analysis', 'training', 'weights', 'inference', 'runtime', 'config', 'models', 'data', 'ops',
    'base',
)  # fmt: skip
# A program: what it does, its flags, one call.
LONGEST_PROGRAM = 60


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {module_name(file): file for file in PACKAGE.rglob('*.py')}


def imported(file):
    """The modules of the package that a file imports, in functions and for types, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f'{file}: relative import'
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'
                yield whole if whole in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


IMPORTS = {
    module: {name for name in imported(file) if name in FILES and name != module}
    for module, file in FILES.items()
}


def layer(module):
    """The room of a module; '' for the programs and the package itself."""
    parts = module.split('.')
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ''


def test_every_folder_is_a_layer():
    folders = {file.parent.name for file in PACKAGE.glob('*/*.py')}
    assert folders == set(LAYERS)


def test_imports_go_down():
    for module, names in IMPORTS.items():
        if layer(module):
            for name in names:
                assert layer(name), f'{module} imports the program or package {name}'
                assert LAYERS.index(layer(module)) <= LAYERS.index(layer(name)), (module, name)


def test_no_module_imports_itself_through_others():
    done = set()

    def visit(module, path):
        assert module not in path, ' -> '.join([*path[path.index(module) :], module])
        if module not in done:
            for name in IMPORTS[module]:
                visit(name, [*path, module])
            done.add(module)

    for module in IMPORTS:
        visit(module, [])


def test_layers_are_listed_in_the_readme_in_this_order():
    text = (PACKAGE.parent / 'README.md').read_text(encoding='utf-8')
    map_of_code = text[text.index('\nxception_flax/') :]
    positions = [map_of_code.index(f'\n    {name}/') for name in LAYERS]
    assert positions == sorted(positions)


def test_a_file_at_the_root_is_a_program_and_nothing_imports_it():
    programs = {f'xception_flax.{file.stem}' for file in PACKAGE.glob('*.py')}
    programs.remove('xception_flax.__init__')
    for module, names in IMPORTS.items():
        assert not names & programs, module
    for program in programs:
        text = FILES[program].read_text(encoding='utf-8')
        assert text.count('\n') <= LONGEST_PROGRAM, program
        assert f'python -m {program}' in text
        assert "if __name__ == '__main__':" in text


def test_no_module_has_the_name_of_one_of_the_standard_library():
    import sys

    root = PACKAGE.parent
    files = [*PACKAGE.rglob('*.py'), *(root / 'experiments').rglob('*.py')]
    names = {file.stem for file in files if file.stem != '__init__'}
    assert not names & sys.stdlib_module_names
