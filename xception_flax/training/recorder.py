"""Shows, writes and draws the numbers of a run."""

import json
import pathlib

import jax

from xception_flax.runtime import curves, flops, writers
from xception_flax.runtime.progress import Progress, results_line
from xception_flax.training.setup import Run


class Recorder:
    """Takes a run's numbers; only the first host writes files.

    Attributes:
      top1: of the evaluations so far, by step: that of the averaged weights where there are any.
    """

    def __init__(self, run: Run, workdir: pathlib.Path, progress: Progress, weights: tuple):
        """Reads what an earlier start has written.

        Args:
          run: the run.
          workdir: its folder.
          progress: what a person sees.
          weights: the kinds of weights that are evaluated.
        """
        self.run, self.workdir, self.progress, self.weights = run, workdir, progress, weights
        self._records = writers.read(workdir / 'metrics.jsonl')
        found = {(r['step'], r['weights']): r['top1'] for r in self._records if 'weights' in r}
        # All kinds of weights, as a crash may have come between them.
        self.top1 = {
            step: float(top1)
            for (step, kind), top1 in found.items()
            if kind == weights[-1] and all((step, w) in found for w in weights)
        }
        self._writer: writers.MetricWriter | None = None
        # With frozen parts there is less work, and how much less is not known.
        self._peak = None if run.frozen else flops.peak(run.mesh.devices.flat[0].device_kind)
        self._work = flops.training_flops(run.model, run.config.image_size) if self._peak else 0.0

    def start(self, step: int) -> None:
        """Opens the files of a run that goes on after `step`, and forgets what came later."""
        for later in [s for s in self.top1 if s > step]:
            del self.top1[later]
        if jax.process_index() == 0:
            kept = [
                record
                for record in self._records
                if record['step'] <= step
                and ('weights' not in record or record['step'] in self.top1)
            ]
            self._writer = writers.MetricWriter(self.workdir, kept, step)

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of a training step that the devices have done."""
        config, devices = self.run.config, self.run.mesh.size
        hidden = {'stop'} if metrics['skipped'] else {'stop', 'skipped'}
        metrics = {name: value for name, value in metrics.items() if name not in hidden}
        speed = self.progress.steps_per_second(step)
        self.progress.log(step, metrics, config.batch_size, speed)
        if speed:
            metrics['examples_per_second'] = round(speed * config.batch_size, 1)
        if speed and self._peak:
            flops_per_second = self._work * speed * config.batch_size
            metrics['flops_utilisation'] = round(flops_per_second / (self._peak * devices), 4)
        self._write({'step': step, 'split': config.dataset.train_split, **metrics})

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Takes what `evaluate` found, and draws the curves anew."""
        split = self.run.config.dataset.eval_split
        for weights, values in results.items():
            self.progress.say(f'step {step:,}  {results_line(split, weights, values)}')
            self._write({'step': step, 'split': split, 'weights': weights, **values})
        self.top1[step] = results[self.weights[-1]]['top1']
        if self._writer:
            records = writers.read(self.workdir / 'metrics.jsonl')
            curves.draw(records, self.workdir / 'curves.png', self.run.title)

    def fault(self, step: int, metrics: dict[str, float], examples: list[str]) -> None:
        """Writes down what is known of a step that was not finite, in `nonfinite.json`."""
        if jax.process_index() == 0:
            report = {'step': step, **writers.finite(metrics), 'examples': examples}
            text = json.dumps(report, indent=1) + '\n'
            (self.workdir / 'nonfinite.json').write_text(text)

    def sync(self) -> None:
        """Sees to it that all is on the disk."""
        if self._writer:
            self._writer.sync()

    def close(self) -> None:
        """Closes the files."""
        if self._writer:
            self._writer.close()

    def _write(self, record: writers.Record) -> None:
        if self._writer:
            self._writer.write(record)
