"""Gradients do not depend on the number of devices, nor on how a batch falls onto them."""

import json

import pytest


def case(implementation, mesh, images, group_size, known=True):
    return {
        'implementation': implementation, 'mesh': mesh, 'images': images, 'group_size': group_size,
        'known': known,
    }  # fmt: skip


# Six groups of four images on eight devices: XLA once had two devices work on the same images.
FEW = [case('reference', [8], 24, 4), case('tpu', [8], 24, 4, known=False)]
FEW += [case('reference', [4, 2], 24, 0)]  # the second axis holds copies
FEW += [case('pallas', [2], 16, 0)]
MANY = [
    case(implementation, mesh, images, group_size, known)
    # GPUs take the reference, TPUs where they have no kernels what is nearly that.
    for implementation, known in (('reference', True), ('reference', False), ('tpu', True))
    for mesh, images, group_size in (
        ([8], 24, 8),  # 3 groups
        ([8], 24, 2),  # 12 groups
        ([4, 2], 24, 0),
        ([2, 4], 24, 12),
    )
]
MANY += [case('pallas', [2, 2], 16, 0)]
MANY += [case('cpu', [8], 24, 4), case('cpu', [4, 2], 24, 8), case('cuda', [8], 40, 5)]


@pytest.mark.parametrize(
    'cases', [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=['few', 'many']
)
def test_gradients_on_several_devices_are_those_of_one(cases, program, tmp_path):
    (tmp_path / 'cases.json').write_text(json.dumps(cases))
    output = program('tests/training/device_gradients.py', f'{tmp_path}/cases.json', devices=8)
    errors = json.loads(output.splitlines()[-1])
    assert len(errors) == len(cases)
    # Sums in float64 in another order; batch norm over two values amplifies rounding.
    wrong = [(case, error) for case, error in zip(cases, errors, strict=True) if error > 1e-7]
    assert not wrong
