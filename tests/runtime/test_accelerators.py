"""A run on CPU beside a GPU that JAX does not see says so."""

import re

import pytest

from xception_flax.base import accelerators, mesh


@pytest.mark.parametrize(
    ('files', 'platforms', 'says'),
    [
        (['nvidia0'], None, r"a GPU .* computes on the CPU\. .*\[gpu\]' \(CUDA 12"),
        (['accel0'], None, r"a TPU .*pip install -U -e '\.\[tpu\]'"),
        (['kfd'], None, 'an AMD GPU .*ROCm'),
        (['nvidia0'], 'cpu', None),
        (['nvidiactl', 'null'], None, None),
    ],
)
def test_an_accelerator_that_jax_does_not_see_is_named(
    tmp_path, monkeypatch, caplog, files, platforms, says
):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(accelerators.sys, 'platform', 'linux')
    monkeypatch.setattr(accelerators, 'DEVICES', tmp_path)
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    if platforms:
        monkeypatch.setenv('JAX_PLATFORMS', platforms)
    assert accelerators.unseen('gpu') == ''
    mesh.make_mesh()
    found = [record.getMessage() for record in caplog.records]
    if says is None:
        assert not found
    else:
        (line,) = found
        assert re.search(says, line)
