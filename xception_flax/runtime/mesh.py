"""The devices of all hosts as one row, over which a batch is split."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_flax.runtime.stopping import StopSignals


def make_mesh() -> Mesh:
    """All devices along the axis 'data', those of one host side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: weights, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Cut along the first axis: batches."""
    return NamedSharding(mesh, PartitionSpec('data'))


def global_batches(
    mesh: Mesh, batches: Iterator[dict], stop: StopSignals | None = None
) -> Iterator[dict[str, jax.Array]]:
    """Makes one global array of what each host has of a batch; the copy to the device is under way.

    Args:
      mesh: the devices.
      batches: this host's shares, dictionaries of `[B / hosts, ...]` arrays.
      stop: with several hosts, 'stop' `[B]` in each batch tells the others of it; see
        `hosts.stop_agreed`.

    Yields:
      Dictionaries of `[B, ...]` arrays, split over the devices.
    """
    sharding = split(mesh)
    for batch in batches:
        if stop is not None and jax.process_count() > 1:
            batch['stop'] = np.full(len(batch['label']), bool(stop.requested), np.float32)
        yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
