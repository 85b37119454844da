"""How long a checkpoint of the full Xception holds training up, and until when it is written.

python experiments/faults/save_time.py
"""

import pathlib
import tempfile
import time

import jax

from xception_flax.config import reading
from xception_flax.runtime.checkpoints import Checkpoint, Checkpoints
from xception_flax.training.setup import set_up

ROOT = pathlib.Path(__file__).parents[2]


def main() -> None:
    """Saves the initial state of the paper's run five times."""
    config = reading.read_file(ROOT / 'configs' / 'imagenet.py')
    config.dataset.source = 'synthetic'
    state = jax.block_until_ready(set_up(config).init())
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder))
        for step in range(1, 6):
            began = time.perf_counter()
            checkpoints.save(Checkpoint(state.replace(step=jax.numpy.int32(step))))
            blocked = time.perf_counter() - began
            checkpoints.wait()
            whole = time.perf_counter() - began
            print(f'{size:.0f} MB: training waits {blocked:.2f} s; written after {whole:.2f} s')
        checkpoints.close()


if __name__ == '__main__':
    main()
