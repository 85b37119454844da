"""Contenders in processes of their own that take turns, so that a ratio is of one run."""

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

from absl import app, flags
from rich.console import Console

ROOT = pathlib.Path(__file__).parents[2]


def run(work: Callable[[], None]) -> None:
    """Runs a benchmark, which takes flags and nothing else."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f'there is nothing to do with {argv[1]!r}')
        work()

    app.run(main)


def define_flags(contenders: Iterable[str] = ()) -> None:
    """Those that `entrants`, `take` and `publish` go by; by a call, as such names are anybody's.

    Args:
      contenders: who can take part, if that is to be chosen.
    """
    if names := list(contenders):
        flags.DEFINE_multi_enum('contender', names, names, 'Who takes part.')
    flags.DEFINE_integer('rounds', 5, 'How often each has its turn.', lower_bound=1)
    flags.DEFINE_float('seconds', 4.0, 'About how long a turn lasts.', lower_bound=0.1)
    flags.DEFINE_string('output', None, 'A JSON file for all numbers.')


def serve(make: Callable[[], Callable[[], Any]], facts: Callable[[], dict] = dict) -> None:
    """The contender's side: calls what `make` gives as often as a line of input says.

    It answers with lines of JSON on standard output: how long the first call took, all preparations
    included, and what `facts` says after the second; then the wall and CPU seconds of each turn,
    the latter since the end of the turn before, as some read ahead. What libraries print goes to
    standard error.
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
    """CPU seconds of this process and of children that have ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Contender:
    """The other side: a process that is ready to be timed.

    Attributes:
      facts: what it said of itself; 'first_call' is how many seconds that took, all preparations
        included.
      turns: pictures per second and per CPU second, of each turn.
    """

    def __init__(self, module: str, arguments: Iterable[object], pictures: int, seconds: float):
        """Starts it, and waits until it has made its first calls.

        Args:
          module: whose main program calls `serve`.
          arguments: of the program.
          pictures: how many there are in a call.
          seconds: about how long a turn shall last.
        """
        arguments = list(arguments)
        self.title = f'{module} {" ".join(map(str, arguments))}'
        self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, '-m', module, *map(str, arguments)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.pictures = pictures
        self.turns: list[dict[str, float]] = []
        self.facts: dict[str, Any] = self._answer()
        self.calls = max(1, round(seconds / self._time(1)['wall']))

    def turn(self) -> None:
        """Lets it work, and notes how quick it was."""
        took = self._time(self.calls)
        self.turns.append({kind: self.calls * self.pictures / s for kind, s in took.items()})

    def rate(self, kind: str = 'wall') -> float:
        """The median over the turns, pictures per second of this kind ('wall' or 'cpu')."""
        return statistics.median(turn[kind] for turn in self.turns)

    def _time(self, calls: int) -> dict[str, float]:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, either
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
    module: str, arguments: Mapping[str, Iterable[object]], pictures: int
) -> dict[str, Contender]:
    """Starts contenders, lets them take turns as the flags say, and ends them.

    Args:
      module: whose main program calls `serve`.
      arguments: of the program, by the contender's name.
      pictures: how many there are in a call.
    """
    values = flags.FLAGS
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, given in arguments.items():
            contenders[name] = Contender(module, given, pictures, values.seconds)
            stack.callback(contenders[name].end)
        for _ in range(values.rounds):
            for contender in contenders.values():
                contender.turn()
    return contenders


def installed(packages: Mapping[str, tuple[str, ...]], console: Console) -> dict[str, str]:
    """The versions of what is there; says which names are left out.

    Args:
      packages: that each name needs; those of names that lack one are not in the result.
      console: where to say it.
    """
    found: dict[str, str] = {}
    for name, needed in packages.items():
        try:
            found |= {package: importlib.metadata.version(package) for package in needed}
        except importlib.metadata.PackageNotFoundError as missing:
            console.print(f'{name}: not measured, as {missing.name} is not installed')
    return found


def entrants(
    contenders: Mapping[str, tuple[str, tuple[str, ...], Any]], console: Console
) -> tuple[list[str], dict[str, str]]:
    """Who of those in `--contender` can take part, and the versions of what they are made of.

    Args:
      contenders: by name: what it is, and its packages.
      console: where to say who is left out.
    """
    wanted = {name: contenders[name] for name in flags.FLAGS.contender}
    versions = installed({title: packages for title, packages, _ in wanted.values()}, console)
    names = [n for n, (_, packages, _) in wanted.items() if set(packages) <= set(versions)]
    return names, versions


def publish(results: Mapping[str, Any], console: Console) -> None:
    """Prints the versions, and writes everything to `--output`."""
    console.print(', '.join(f'{package} {v}' for package, v in results['versions'].items()))
    if flags.FLAGS.output:
        pathlib.Path(flags.FLAGS.output).write_text(json.dumps(results, indent=1) + '\n')


def machine() -> str:
    """The class of this machine, in words."""
    return f'{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}'
