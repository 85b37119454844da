"""What several test files need: settings, programs started as a user does, results of runs."""

import atexit
import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from xception_flax import config as configs
from xception_flax.runtime.writers import OF_THE_CLOCK

ROOT = pathlib.Path(__file__).parents[1]
CACHE = os.environ['XCEPTION_FLAX_TEST_CACHE']  # see conftest.py
AGAIN = 75  # the status of a program that the same command resumes

# Short runs of small networks. Tests that train use these where they can: what one of them compiles
# is there for the others.
DIGITS = (
    '-m', 'xception_flax.main', '--config=configs/digits.py', '--config.total_steps=24',
    '--config.eval_steps=8', '--config.log_steps=1', '--config.batch_size=64',
    '--config.xception.middle_repeats=0', '--config.xception.dropout=0',
)  # fmt: skip
RUN = (  # for tests of stopping and resuming
    '-m', 'xception_flax.main', '--config=configs/digits.py', '--config.total_steps=30',
    '--config.eval_steps=15', '--config.checkpoint_steps=5', '--config.log_steps=1',
    '--config.batch_size=16', '--config.xception.middle_repeats=0', '--config.xception.width=0.05',
    '--config.keep_last=9', '--config.schedule.name=constant', '--config.schedule.warmup_steps=1',
)  # fmt: skip


def changed(config: ConfigDict, **settings) -> ConfigDict:
    """The config with some settings changed in place; '__' in a name stands for '.'."""
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in settings.items()})
    return config


def default_config(**settings) -> ConfigDict:
    """The default settings with some changed; '__' in a name stands for '.'."""
    return changed(configs.default(), **settings)


def small_config(**settings) -> ConfigDict:
    """A short run of a small Xception on the digits; '__' in a name stands for '.'."""
    c = configs.default()
    c.dataset.source, c.dataset.eval_split = 'digits', 'test'
    c.xception.update(stem='small', width=0.05, middle_repeats=0, bn_momentum=0.9, dropout=0.0)
    c.image_size, c.batch_size, c.total_steps = 16, 16, 4
    c.augment.crop, c.augment.flip, c.crop_fraction = 'none', False, 1.0
    c.loader_threads = 1
    c.schedule.name, c.schedule.learning_rate = 'constant', 0.05
    c.ema_decay = 0.0
    return changed(c, **settings)


def environment(**changes: str | None) -> dict[str, str]:
    """The environment of programs, which share their compiled programs; None removes a variable."""
    whole = {
        **os.environ,
        'JAX_COMPILATION_CACHE_DIR': CACHE,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def start(*args: str, devices: int | None = None, **env: str | None) -> subprocess.Popen:
    """Starts `python *args` in the project's root, as a user does.

    Args:
      *args: arguments of Python.
      devices: number of simulated devices.
      **env: changes of the environment; None removes a variable.
    """
    if devices is not None:
        env['JAX_NUM_CPU_DEVICES'] = str(devices)
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# What programs import: most of the time of a program that has little to do.
LIBRARIES = (
    'matplotlib.backends.backend_agg', 'rich.table', 'sklearn.datasets',
    'xception_flax.analysis.tables', 'xception_flax.inference.listing',
    'xception_flax.training.loop',
)  # fmt: skip


@functools.cache
def _forks() -> Any:
    """A process that has imported the libraries, of which programs are forks."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(LIBRARIES))
    before = dict(os.environ)
    os.environ.update(environment())  # JAX reads it when it is imported
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


def _run_module(
    args: Sequence[str],
    devices: int | None,
    env: dict[str, str],
    out: pathlib.Path,
    err: pathlib.Path,
) -> None:
    """In a fork: becomes `python -m *args`."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    if devices is not None:
        import jax

        jax.config.update('jax_num_cpu_devices', devices)
    sys.argv = list(args)
    try:
        runpy.run_module(args[0], run_name='__main__', alter_sys=True)
    finally:
        atexit._run_exitfuncs()


class Program:
    """`python -m xception_flax.NAME ...`, started by a fork; whole runs are also started afresh.

    A fork of a process that has imported the libraries saves three of the four seconds that a start
    takes. Everything after the imports is the same.
    """

    def __init__(self, *args: str, devices: int | None = None, **env: str):
        """Starts it; arguments as for `start`."""
        assert args[0] == '-m'
        self.args = args
        folder = pathlib.Path(tempfile.mkdtemp(dir=CACHE))
        self._out, self._err = folder / 'out', folder / 'err'
        for file in (self._out, self._err):
            file.touch()
        self._process = _forks().Process(
            target=_run_module,
            args=(args[1:], devices, environment(**env), self._out, self._err),
            daemon=True,
        )
        self._process.start()

    @property
    def output(self) -> str:
        """What it has printed so far, except for errors."""
        return self._out.read_text()

    @property
    def errors(self) -> str:
        """What it has printed to stderr so far."""
        return self._err.read_text()

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    def wait_for(self, text: str, count: int = 1, seconds: float = 120) -> None:
        """Waits until the output has the text `count` times."""
        deadline = time.monotonic() + seconds
        while self.output.count(text) < count:
            assert time.monotonic() < deadline, self.output
            assert self._process.is_alive(), self.output + self.errors
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Sends a signal."""
        assert self._process.is_alive(), self.output + self.errors
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def status(self, seconds: float = 600) -> int:
        """Waits for the end; returns the status, the negative number of a signal that ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f'{self.args} still runs\n{self.output}'
        return self._process.exitcode

    def end(self, status: int = 0) -> str:
        """Waits for the end, which must have this status; returns what it printed."""
        found = self.status()
        assert found == status, f'{self.args} ended with {found}\n{self.output}\n{self.errors}'
        return self.output + self.errors


class Watched:
    """A program that is started as a user does, whose output is read as it comes."""

    def __init__(self, *args: str, **options):
        """Starts it; arguments as for `start`."""
        self.process = start(*args, **options)
        self.output = ''
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text: str, count: int = 1, seconds: float = 120) -> None:
        """Waits until the output has the text `count` times."""
        deadline = time.monotonic() + seconds
        while self.output.count(text) < count:
            assert time.monotonic() < deadline, self.output
            assert self.process.poll() is None, self.output + self.process.stderr.read()
            time.sleep(0.005)

    def end(self, status: int) -> str:
        """Waits for the end, which must have this status; returns what it printed."""
        self.process.wait(120)
        assert self.process.returncode == status, self.output + self.process.stderr.read()
        return self.output


def entries(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, without what depends on the clock."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for entry in found:
        for name in OF_THE_CLOCK:
            entry.pop(name, None)
    return found


def weights(workdir: pathlib.Path, step: int | None = None) -> dict:
    """The live and the averaged variables of a run, as NumPy arrays."""
    import jax

    import xception_flax

    kinds = ('live', 'averaged')
    return jax.device_get({w: xception_flax.load(workdir, step, w).variables for w in kinds})


def scalars(folder: pathlib.Path) -> dict[tuple[str, int], float]:
    """The values in TensorBoard's event files, by tag and step."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob('events*')):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def write_class_folders(
    root: pathlib.Path, splits: dict[str, int], classes: int, seed: int = 0
) -> pathlib.Path:
    """Writes images of as many colours as classes.

    Args:
      root: gets SPLIT/CLASS/NUMBER.png, and .jpg for every second image.
      splits: number of images per class, by split.
      classes: number of classes, named '0', '1', ...
      seed: seed of the brightness of the images.
    """
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for label in range(classes):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            hue = 180 * label // classes
            colour = cv2.cvtColor(np.uint8([[[hue, 255, 200]]]), cv2.COLOR_HSV2BGR)
            for i in range(count):
                image = colour * rng.uniform(0.7, 1, (40 + i, 50, 1))
                cv2.imwrite(str(folder / f'{i}.{("jpg", "png")[i % 2]}'), image.astype(np.uint8))
    return root


def random_variables(model, image_size: int) -> dict:
    """Variables of a network for tests that compare; `model.init` would compile for seconds.

    All differ from each other and from their initial values; activations keep an ordinary size.
    """
    import jax

    from xception_flax.models import abstract_variables

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ('scale', 'var'):
            values = 0.5 + rng.random(leaf.shape, np.float32)
        else:
            fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
            values = rng.standard_normal(leaf.shape, np.float32) / np.float32(fan_in**0.5)
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model, image_size))
