"""Contenders in separate processes that take turns, so that slow phases of a machine hit all."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from absl import flags
from rich.console import Console

ROOT = pathlib.Path(__file__).parents[2]


def define_flags(contenders: Iterable[str] = ()) -> None:
    """Defines the flags of `entrants`, `take` and `publish`, for programs that use them.

    Args:
      contenders: names to choose from; none if the program has no choice.
    """
    if names := list(contenders):
        flags.DEFINE_multi_enum('contender', names, names, 'Contenders to measure.')
    flags.DEFINE_integer('rounds', 5, 'Turns of each contender.', lower_bound=1)
    flags.DEFINE_float('seconds', 4.0, 'Approximate length of a turn.', lower_bound=0.1)
    flags.DEFINE_string('output', None, 'A JSON file for all numbers.')


def arguments(documentation: str | None) -> list[str]:
    """The arguments of a contender; with `--help` it prints its documentation and ends."""
    if {'-h', '--help'} & set(sys.argv):
        print(documentation)
        sys.exit()
    return sys.argv[1:]


def serve(make: Callable[[], Callable[[], Any]], facts: Callable[[], dict] = dict) -> None:
    """The contender's side: reads numbers of calls from standard input, and times the calls.

    It prints lines of JSON: first the seconds of the first call, all preparations included, with
    `facts()` after the second; then the wall and CPU seconds of each turn. CPU seconds count from
    the end of the turn before, as some contenders read ahead. What libraries print goes to standard
    error.

    Args:
      make: prepares, and returns the function to call.
      facts: what else to report.
    """
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    began = time.perf_counter()
    call = make()
    call()
    first_call = time.perf_counter() - began
    call()
    print(json.dumps({'first_call': first_call} | facts()), file=answers)
    cpu = _cpu()
    for line in sys.stdin:
        wall, before = time.perf_counter(), cpu
        for _ in range(int(line)):
            call()
        cpu = _cpu()
        turn = {'wall': time.perf_counter() - wall, 'cpu': cpu - before}
        print(json.dumps(turn), file=answers)


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Contender:
    """The benchmark's side: a process that is ready to be timed.

    Attributes:
      facts: what it reported; 'first_call' is in seconds, all preparations included.
      turns: images per wall second and per CPU second of each turn.
    """

    def __init__(self, module: str, arguments: Iterable[object], images: int, seconds: float):
        """Starts it, and waits until it has made its first calls.

        Args:
          module: program that calls `serve`.
          arguments: arguments of the program.
          images: number of images per call.
          seconds: approximate length of a turn.
        """
        arguments = list(arguments)
        self.title = f'{module} {" ".join(map(str, arguments))}'
        self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, '-m', module, *map(str, arguments)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.images = images
        self.turns: list[dict[str, float]] = []
        self.facts: dict[str, Any] = self._answer()
        self.calls = max(1, round(seconds / self._time(1)['wall']))

    def turn(self) -> None:
        """Gives it a turn, and records its speed."""
        took = self._time(self.calls)
        self.turns.append({kind: self.calls * self.images / s for kind, s in took.items()})

    def rate(self, kind: str = 'wall') -> float:
        """Median over the turns of images per second, by `kind` of second: 'wall' or 'cpu'."""
        return statistics.median(turn[kind] for turn in self.turns)

    def _time(self, calls: int) -> dict[str, float]:
        with contextlib.suppress(BrokenPipeError):  # `_answer` reports it
            print(calls, file=self._pipe(self.process.stdin), flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        line = self._pipe(self.process.stdout).readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().strip().splitlines()
            sys.exit(f'{self.title} ended with {self.process.wait()}: {"".join(said[-1:])}')
        return json.loads(line)

    @staticmethod
    def _pipe(pipe: Any) -> TextIO:
        assert pipe is not None
        return pipe

    def end(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


def take(
    module: str, arguments: Mapping[str, Iterable[object]], images: int
) -> dict[str, Contender]:
    """Starts contenders, lets them take turns by the flags, and ends them.

    Args:
      module: program that calls `serve`.
      arguments: arguments of the program, by name of the contender.
      images: number of images per call.
    """
    values = flags.FLAGS
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, given in arguments.items():
            contenders[name] = Contender(module, given, images, values.seconds)
            stack.callback(contenders[name].end)
        for _ in range(values.rounds):
            for contender in contenders.values():
                contender.turn()
    return contenders


def installed(packages: Mapping[str, tuple[str, ...]], console: Console) -> dict[str, str]:
    """The versions of installed packages; prints which names lack one.

    Args:
      packages: packages that each name needs; if one is missing, the name is left out.
      console: to print on.
    """
    found: dict[str, str] = {}
    for name, needed in packages.items():
        try:
            found |= {package: _version(package) for package in needed}
        except importlib.metadata.PackageNotFoundError as missing:
            console.print(f'{name}: not measured: {missing.name} is not installed')
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != 'tensorflow':
            raise
        return importlib.metadata.version('tensorflow-cpu')  # the same, without GPUs


def entrants(
    contenders: Mapping[str, tuple[str, tuple[str, ...], Any]], console: Console
) -> tuple[list[str], dict[str, str]]:
    """The contenders of `--contender` that are installed, and the versions of their packages.

    Args:
      contenders: by name: label, packages that it needs, and anything.
      console: to print on.
    """
    wanted = {name: contenders[name] for name in flags.FLAGS.contender}
    versions = installed({title: packages for title, packages, _ in wanted.values()}, console)
    names = [n for n, (_, packages, _) in wanted.items() if set(packages) <= set(versions)]
    return names, versions


def publish(results: Mapping[str, Any], console: Console) -> None:
    """Prints the versions, and writes all results to `--output`."""
    console.print(', '.join(f'{package} {v}' for package, v in results['versions'].items()))
    if flags.FLAGS.output:
        pathlib.Path(flags.FLAGS.output).write_text(json.dumps(results, indent=1) + '\n')


def machine() -> str:
    """A description of this machine."""
    return f'{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}'
