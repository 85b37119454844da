"""Training batches of images that need no decoding, for `experiments.benchmarks.ceiling`.

  python -m experiments.benchmarks.stubbed PROCESSES BATCH

PROCESSES load the images; the benchmark starts this program and times it.
"""

from experiments.benchmarks import turns

THREADS = 16
BATCHES = 20  # of a call: more than wait, since those take no time


def main(processes: str, size: str) -> None:
    """Serves one contender."""
    from xception_flax import config as configs
    from xception_flax.data import pipeline, sources
    from xception_flax.data.reader import Reader

    config = configs.default()
    config.dataset.source = 'synthetic'
    config.augment.crop, config.augment.flip = 'none', False
    config.batch_size = int(size)
    config.loader_processes, config.loader_threads = int(processes), THREADS
    reader = Reader(sources.load(config, 'train'), 0.0)
    batches = pipeline.training_batches(reader, config, 0)

    def take() -> None:
        for _ in range(BATCHES):
            next(batches)

    turns.serve(lambda: take)


if __name__ == '__main__':
    main(*turns.arguments(__doc__))
