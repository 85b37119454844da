"""Shows, writes and draws the numbers of a run."""

import pathlib
from typing import Any

import jax

from xception_flax.config import reading
from xception_flax.runtime import curves, flops, writers
from xception_flax.runtime.progress import Progress, results_line
from xception_flax.training.setup import Run


class Recorder:
    """Takes a run's numbers; only the first host writes files."""

    def __init__(self, run: Run, workdir: pathlib.Path, start: int, progress: Progress):
        """Opens the files of a run that goes on after step `start`, and writes its settings."""
        self.run, self.workdir, self.progress = run, workdir, progress
        self.writer = None
        if jax.process_index() == 0:
            (workdir / 'config.json').write_text(reading.to_json(run.config))
            self.writer = writers.MetricWriter(workdir, start)
        self.peak = flops.peak(run.mesh.devices.flat[0])
        self.work = flops.training_flops(run.model, run.config.image_size) if self.peak else 0.0

    def train(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of a training step that the devices have done."""
        config, devices = self.run.config, self.run.mesh.size
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        speed = self.progress.steps_per_second(step)
        self.progress.log(step, metrics, config.batch_size, speed)
        if speed:
            metrics['examples_per_second'] = round(speed * config.batch_size, 1)
        if speed and self.peak:
            flops_per_second = self.work * speed * config.batch_size
            metrics['flops_utilisation'] = round(flops_per_second / (self.peak * devices), 4)
        self._write({'step': step, 'split': config.dataset.train_split, **metrics})

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Takes what `evaluate` found, and draws the curves anew."""
        config = self.run.config
        split = config.dataset.eval_split
        for weights, values in results.items():
            self.progress.say(f'step {step:,}  {results_line(split, weights, values)}')
            self._write({'step': step, 'split': split, 'weights': weights, **values})
        if self.writer:
            title = f'{config.model} on {config.dataset.name or config.dataset.source}'
            records = writers.read(self.workdir / 'metrics.jsonl')
            curves.draw(records, self.workdir / 'curves.png', title)

    def close(self) -> None:
        """Closes the files."""
        if self.writer:
            self.writer.close()

    def _write(self, record: writers.Record) -> None:
        if self.writer:
            self.writer.write(record)
