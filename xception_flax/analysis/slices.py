"""TPU chips, and slices of them to compile for, without a TPU."""

import dataclasses
import os
import re
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from xception_flax.analysis import schedule
from xception_flax.base.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak performance of a TPU chip, from Google's data sheets.

    Attributes:
      flops: dense bfloat16 operations per second.
      memory: bytes of HBM.
      bandwidth: bytes per second from and to HBM.
      clock: cycles per second, from `flops` and the size and number of matrix units.
    """

    flops: float
    memory: float
    bandwidth: float
    clock: float


CHIPS = {
    'v4': Chip(275e12, 32 * 2**30, 1228e9, 1.05e9),
    'v5e': Chip(197e12, 16 * 2**30, 819e9, 1.5e9),
    'v5p': Chip(459e12, 95 * 2**30, 2765e9, 1.75e9),
    'v6e': Chip(918e12, 32 * 2**30, 1638e9, 1.75e9),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that compute together.

    Attributes:
      name: kind and shape, such as 'v5e:4x4', or '2 x v5e:4x4' for two slices.
      chip: kind of chip.
      chips: number of chips, of all slices.
      mesh: abstract JAX devices in a row, for which programs can be compiled.
    """

    name: str
    chip: Chip
    chips: int
    mesh: Mesh


def describe(topology: str, slices: int = 1) -> Slice:
    """Describes a slice for the compiler; needs no TPU.

    Args:
      topology: kind and shape: 'v5e:4x4', 'v4:2x2x4'.
      slices: number of such slices, which the data-centre network connects.

    Raises:
      UserError: there is no such kind or shape, or the TPU compiler is not installed.
    """
    kind, _, shape = topology.partition(':')
    if kind not in CHIPS:
        raise UserError(f'--topology={topology}: there is no {kind!r}{nearest(kind, CHIPS)}')
    dimensions = 2 if kind in ('v5e', 'v6e') else 3
    example = f'{kind}:{"x".join("4" * dimensions)}'
    if not re.fullmatch('x'.join([r'[1-9]\d*'] * dimensions), shape):
        raise UserError(f'--topology={topology}: give the shape in {dimensions}D, as {example}')
    # libtpu needs to know its own TPU, which has no effect on what is compiled.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no query to Google's servers
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # beside other programs that hold it
    schedule.record()
    from jax.experimental import topologies

    try:
        # The two cores of a v4 chip are one JAX device, as on Cloud TPU.
        options: dict[str, Any] = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
        if slices > 1:
            options['num_slices'] = slices
        found = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options)
    except Exception as error:  # of many types; or libtpu is missing
        reason = ' '.join(str(error).split())[:200]
        hint = "; pip install -e '.[tpu]'" if 'libtpu' in reason or 'backend' in reason else ''
        raise UserError(f'--topology={topology}: {reason}{hint}') from error
    devices: list[Any] = sorted(found.devices, key=lambda device: device.id)
    chips = slices * len({tuple(device.coords) for device in devices})
    mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
    return Slice(f'{slices} x {topology}' if slices > 1 else topology, CHIPS[kind], chips, mesh)
