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
