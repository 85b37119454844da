"""Measures how long a checkpoint of the full Xception blocks training, and how long writing takes.

    python experiments/faults/save_time.py

Five checkpoints are saved one after the other; the settings are those of configs/imagenet.py.
"""

import pathlib
import tempfile
import time

import jax

from xception_flax.config import reading
from xception_flax.runtime import program
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.training.setup import set_up

ROOT = pathlib.Path(__file__).parents[2]


def main() -> None:
    """Saves the initial state of a run on ImageNet five times."""
    config = reading.read_file(ROOT / 'configs' / 'imagenet.py')
    config.dataset.source = 'synthetic'
    state, _ = set_up(config).init()
    jax.block_until_ready(state)
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder))
        for step in range(1, 6):
            began = time.perf_counter()
            checkpoints.save(Checkpoint(state.replace(step=jax.numpy.int32(step))))
            blocked = time.perf_counter() - began
            checkpoints.wait()
            written = time.perf_counter() - began
            print(f'{size:.0f} MB: training waits {blocked:.2f} s; written after {written:.2f} s')
        checkpoints.close()


if __name__ == '__main__':
    program.run(main, alone=True)
