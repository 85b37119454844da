import pathlib
import subprocess
import sys

import pytest

import xception_flax


def test_the_public_names_are_there():
    for name in xception_flax.__all__:
        assert getattr(xception_flax, name).__doc__
        assert name in dir(xception_flax)
    with pytest.raises(AttributeError, match='nothing'):
        _ = xception_flax.nothing


def test_import_alone_loads_no_heavy_library():
    code = 'import sys, xception_flax; print(sorted({m.split(".")[0] for m in sys.modules}))'
    loaded = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    for library in ('jax', 'flax', 'numpy', 'tensorflow', 'cv2'):
        assert f"'{library}'" not in loaded.stdout


def test_no_public_name_is_that_of_a_program():
    """Importing xception_flax/NAME.py makes it the attribute NAME of the package."""
    package = pathlib.Path(xception_flax.__file__).parent
    assert not {file.stem for file in package.iterdir()} & set(xception_flax.__all__)


def test_importing_programs_changes_no_public_name():
    code = """
import importlib, os, pathlib, xception_flax, xception_flax.weights
before = [getattr(xception_flax, name) for name in xception_flax.__all__]
for file in pathlib.Path(xception_flax.__file__).parent.glob('[a-z]*.py'):
    if os.fork() == 0:  # their flags would be in conflict
        importlib.import_module(f'xception_flax.{file.stem}')
        assert [getattr(xception_flax, name) for name in xception_flax.__all__] == before
        os._exit(0)
    assert os.wait()[1] == 0, file
print(before[-1].__module__)
"""
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == ['xception_flax.weights.loading'], found.stderr
