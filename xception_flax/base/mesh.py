"""The mesh: the devices of all processes in a row, over which a batch is sharded."""

from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_flax.base import accelerators
from xception_flax.base.signals import StopSignals


def make_mesh() -> Mesh:
    """All devices along the axis 'data', those of one process side by side.

    Processes are numbered slice by slice, so the devices of a TPU slice are side by side, too. To
    sum over several slices, the TPU compiler sums inside each slice, exchanges these sums over the
    data-centre network, large ones in parts by chip, and gathers the parts inside each slice; that
    needs no second axis.
    `python -m xception_flax.plan --slices=N` reports the bytes.
    """
    if warning := accelerators.unseen(jax.default_backend()):
        logging.warning(warning)
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicated on every device: weights, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Sharded along the first axis: batches."""
    return NamedSharding(mesh, PartitionSpec('data'))


def global_batches(
    mesh: Mesh, batches: Iterator[dict], stop: StopSignals | None = None
) -> Iterator[dict[str, jax.Array]]:
    """Makes global arrays, sharded over the devices, of this process's `batches`; copies are async.

    A stop request travels in the batch, as 'stop' `[B]`, so every process sees it in the same
    step's metrics, without extra communication (`processes.stop_agreed`).
    """
    sharding = sharded(mesh)

    def place(batch: dict) -> dict[str, jax.Array]:
        if stop is not None and jax.process_count() > 1:
            batch['stop'] = np.full(len(batch['label']), bool(stop.requested), np.float32)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    return map(place, batches)  # a generator would keep each batch until the next
