"""Prints, writes and draws the numbers of a run."""

import json

import jax

from xception_flax.base import extras, paths
from xception_flax.runtime import trackers, writers
from xception_flax.runtime.progress import Progress
from xception_flax.training import curves, flops, metrics
from xception_flax.training.setup import Run

WAITING = 0.1  # fraction of the time from which the log says that training waits for data
WAITED = 10.0  # seconds after which it also says what to do
# What a run does without if a package is missing.
DRAWN_BY = {'matplotlib': 'curves.png', 'tensorboardX': 'event file of TensorBoard'}


class Recorder:
    """Takes the numbers of a run; only the first process writes files.

    Attributes:
      scores: value of the metric `config.best` by step, of the averaged weights where there are
        any, negative if lower is better; the highest score is the best.
    """

    def __init__(self, run: Run, workdir: paths.Path, progress: Progress, weights: tuple[str, ...]):
        """Reads what an earlier start has written; `weights` are the kinds that are evaluated."""
        self.run, self.workdir, self.progress, self.weights = run, workdir, progress, weights
        self._entries = writers.read(workdir / 'metrics.jsonl')
        found = {(e['step'], e['weights']): e for e in self._entries if 'weights' in e}
        # All kinds of weights, as a crash may have come between them.
        self.scores = {
            step: self._score(entry)
            for (step, kind), entry in found.items()
            if kind == weights[-1] and all((step, w) in found for w in weights)
        }
        self._advised = False
        self._writer: writers.MetricWriter | None = None
        # With frozen modules there is less work, and how much less is not known.
        self._peak = None if run.frozen else flops.peak(run.mesh.devices.flat[0].device_kind)
        self._work = flops.training_flops(run.model, run.config.image_size) if self._peak else 0.0

    def start(self, step: int) -> None:
        """Opens the files of a run that resumes after `step`, and drops what came later."""
        for later in [s for s in self.scores if s > step]:
            del self.scores[later]
        if jax.process_index() == 0:
            kept = [
                entry
                for entry in self._entries
                if entry['step'] <= step
                and ('weights' not in entry or entry['step'] in self.scores)
            ]
            package, settings = self.run.config.tracker, self.run.config.to_dict()
            tracker = package and trackers.Tracker(
                package, self.workdir, settings, step, self.progress.say
            )
            self._writer = writers.MetricWriter(self.workdir, kept, step, tracker or None)
            for package, what in DRAWN_BY.items():
                if not extras.present(package):
                    self.progress.say(f"no {what}: it needs {package} (pip install -e '.[train]')")

    def train(self, step: int, values: dict[str, float]) -> None:
        """Takes the metrics of a completed training step."""
        config, devices = self.run.config, self.run.mesh.size
        hidden = {'stop'} if values['skipped'] else {'stop', 'skipped'}
        values = {name: value for name, value in values.items() if name not in hidden}
        speed = self.progress.steps_per_second(step)
        shown = [f'{m.label} {values[m.name]:.3f}' for m in metrics.METRICS if m.logged]
        text = '  '.join(
            [f'loss {values["loss"]:.4f}', *shown, f'lr {values["learning_rate"]:.4g}']
        )
        waiting = self.progress.waiting
        if waiting >= WAITING:
            text += f'  waits for data {100 * waiting:.0f} % of the time'
            self._advise()
        self.progress.log(step, text, config.batch_size, speed)
        if speed:
            values['examples_per_second'] = round(speed * config.batch_size, 1)
            values['input_wait_fraction'] = round(waiting, 4)
        if speed and self._peak:
            flops_per_second = self._work * speed * config.batch_size
            values['flops_utilisation'] = round(flops_per_second / (self._peak * devices), 4)
        self._write({'step': step, 'split': config.dataset.train_split, **values})

    def _advise(self) -> None:
        """Says once what to do where training waits for data."""
        config = self.run.config
        if self._advised or self.progress.waited < WAITED:
            return
        self._advised = True
        self.progress.say(
            'training waits for data. If cores are idle, raise config.loader_threads (it is '
            f'{config.loader_threads}) or config.loader_processes; if the disk or the bucket is '
            'slow, let config.dataset.copy_to name a folder on a faster disk, or below /dev/shm'
        )

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Takes what `evaluate` returned, and draws the curves again."""
        split = self.run.config.dataset.eval_split
        for weights, values in results.items():
            self.progress.say(f'step {step:,}  {metrics.results_line(split, weights, values)}')
            self._write({'step': step, 'split': split, 'weights': weights, **values})
        self.scores[step] = self._score(results[self.weights[-1]])
        if self._writer and extras.present('matplotlib'):
            curves.draw(self._writer.entries(), self.workdir / 'curves.png', self.run.title)

    def exhausted(self) -> bool:
        """Whether the newest `config.patience` evaluations are no better than those before."""
        scores = [self.scores[step] for step in sorted(self.scores)]
        return metrics.exhausted(scores, self.run.config.patience)

    def fault(self, step: int, values: dict[str, float], examples: list[str]) -> None:
        """Writes what is known of a step that was not finite to `nonfinite.json`."""
        if jax.process_index() == 0:
            report = {'step': step, **writers.finite(values), 'examples': examples}
            text = json.dumps(report, indent=1) + '\n'
            paths.write(self.workdir / 'nonfinite.json', text)

    def sync(self) -> None:
        """Flushes everything to the disk."""
        if self._writer:
            self._writer.sync()

    def close(self) -> None:
        """Closes the files."""
        if self._writer:
            self._writer.close()

    def _score(self, entry: writers.Entry) -> float:
        return metrics.score(self.run.config.best, entry)

    def _write(self, entry: writers.Entry) -> None:
        if self._writer:
            self._writer.write(entry)
