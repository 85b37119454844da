"""Measures the training steps per second of a study's networks, side by side.

  python -m experiments.speed imagenet --workdir=/data/runs --set=batch_size=128
  python -m experiments.speed fashion_mnist --workdir=/tmp/fashion

All networks are in one process on the same devices and take turns: some steps of the first, some of
the second, and so on, in several rounds. The images are random and already on the devices, so no
data is needed and reading does not count. The numbers go to WORKDIR/speed.json, which
experiments.report reads.
"""

import contextlib
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from xception_flax.runtime import program

if TYPE_CHECKING:
    from experiments.studies.study import Variant

flags.declare_key_flag('workdir')
flags.DEFINE_multi_string('set', [], 'A setting of all networks: PATH=VALUE.')
flags.DEFINE_integer('rounds', 7, 'Turns of each network.', lower_bound=1)
flags.DEFINE_integer('steps', 5, 'Steps per turn.', lower_bound=1)


def main(name: str) -> None:
    """Measures by the flags."""
    import jax
    from tqdm import tqdm

    from experiments.studies import lookup, settings
    from xception_flax.base import paths

    values = flags.FLAGS
    workdir = paths.folder(values.workdir)
    study = lookup(name)
    overrides = settings.assignments(values.set)
    networks = {}
    for variant in tqdm(study.variants, 'compiling', unit='network'):
        networks[variant.name] = Network(variant, study.num_classes, overrides)
    for _ in tqdm(range(values.rounds), 'measuring', unit='round'):
        for network in networks.values():
            network.turn(values.steps)
    device = jax.devices()[0]
    found = {
        'devices': f'{jax.device_count()} x {device.device_kind}',
        'jax': jax.__version__,
        'rounds': values.rounds,
        'steps': values.steps,
        'networks': {name: network.results() for name, network in networks.items()},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    paths.write(workdir / 'speed.json', json.dumps(found, indent=1) + '\n')
    for name, result in found['networks'].items():
        print(
            f'{name}: {result["steps_per_second"]:.3f} steps/s, batches of {result["batch_size"]} '
            f'(from {min(result["turns"]):.3f} to {max(result["turns"]):.3f})'
        )


class Network:
    """A network in training, on one batch that stays on the devices."""

    def __init__(self, variant: 'Variant', num_classes: int | None, overrides: dict[str, Any]):
        """Compiles the training step and takes two steps."""
        from experiments.studies import settings
        from xception_flax.base import mesh as meshes
        from xception_flax.data import pipeline
        from xception_flax.data.reader import Reader
        from xception_flax.training.setup import set_up

        config = settings.read(variant.file, {**variant.overrides, **overrides})
        with config.unlocked():
            config.dataset.source, config.loader_processes = 'synthetic', 0
            config.dataset.train_split = config.dataset.eval_split = 'train'
            config.dataset.num_classes = config.dataset.num_classes or num_classes
        self.run = set_up(config)
        self.turns: list[float] = []
        self.state, _ = self.run.init()
        reader = Reader(self.run.train_source, 0.0)
        with contextlib.closing(pipeline.training_batches(reader, self.run.config, 0)) as batches:
            self.batch = next(meshes.global_batches(self.run.mesh, batches))
        self.turn(2)
        self.turns.clear()

    def turn(self, steps: int) -> None:
        """Takes some steps, and records the steps per second."""
        import jax

        began = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.run.train_step(self.state, self.batch)
        jax.block_until_ready(metrics)
        self.turns.append(steps / (time.perf_counter() - began))

    def results(self) -> dict[str, Any]:
        """The median of the turns, and all of them."""
        return {
            'steps_per_second': statistics.median(self.turns),
            'batch_size': self.run.config.batch_size,
            'image_size': self.run.config.image_size,
            'dtype': self.run.config.dtype,
            'turns': self.turns,
        }


if __name__ == '__main__':
    program.run(main, needs=('workdir',), alone=True, arguments='STUDY')
