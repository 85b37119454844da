import importlib
import pathlib
import re
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


def test_a_program_never_takes_the_place_of_the_function_of_its_name():
    """Importing xception_flax/predict.py would: it becomes the package's attribute `predict`."""
    package = pathlib.Path(xception_flax.__file__).parent
    names = {file.stem for file in package.glob('*.py')} & set(xception_flax.__all__)
    assert names == {'predict'}
    importing = re.compile(rf'(import|from) xception_flax\.({"|".join(names)})\b')
    for folder in (package, package.parent / 'tests', package.parent / 'configs'):
        for file in folder.rglob('*.py'):
            assert not importing.search(file.read_text(encoding='utf-8')), file
    assert xception_flax.predict is importlib.import_module('xception_flax.inference').predict
