"""The machine code that the TPU compiler schedules: what a kernel costs, where XLA cannot say.

A chip issues a bundle of instructions in each cycle, unless it waits. With `record` the compiler
writes the bundles of everything into files, and `collect` reads them: the cycles are the number of
bundles, those of a loop as often as it runs. Waiting for memory is left out.

The format is libtpu's own (seen in 0.0.50.1), and not documented.
"""

import atexit
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection, Sequence

import numpy as np

# The units of a core, and how many slots a bundle has for each (v5e): matrix unit, moves across
# lanes, vector arithmetic, results of the matrix unit, transcendental functions, loads, loads of
# spilled registers, stores, stores of spilled registers, scalar arithmetic.
UNITS = {'MXU': 4, 'XLU': 3, 'VALU': 4, 'VPOP': 2, 'EUP': 1, 'VLOAD': 3, 'FILL': 3, 'VSTORE': 1,
         'SPILL': 1, 'SALU': 2}  # fmt: skip
FILLING = 2
CODE, SLOTS = 'final_bundles', 'final_hlo-static-per-bundle-utilization'

_BUNDLE = re.compile(r' *(0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: *>* *\{(.*)')
_REGION = re.compile(r'Start region (\d+)')
_TEST = re.compile(r'%(p\w+) = scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test')
_BRANCH = re.compile(r'sbr\.rel \(!%(p\w+)\) target = \$region(\d+)')
_DELAY = 1  # bundles behind a branch that still run


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of the machine code, or a whole kernel.

    Attributes:
      first: number of its first bundle.
      end: number behind its last one.
      trips: how often it runs, where it is reached.
      inner: the loops in it.
    """

    first: int
    end: int
    trips: int
    inner: tuple['Loop', ...] = ()

    @property
    def bundles(self) -> int:
        """Bundles of one trip that are not in an inner loop."""
        return self.end - self.first - sum(loop.end - loop.first for loop in self.inner)

    @property
    def cycles(self) -> int:
        """Bundles of all trips, with those of the inner loops."""
        return self.trips * (self.bundles + sum(loop.cycles for loop in self.inner))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The machine code of an operation.

    Attributes:
      whole: all of it as a loop that runs once.
      slots: used slots of each bundle, `[bundles, len(UNITS)]`.
    """

    whole: Loop
    slots: np.ndarray

    @property
    def cycles(self) -> int:
        """Bundles that are issued."""
        return self.whole.cycles

    def used(self, loop: Loop) -> dict[str, int]:
        """Slots by unit that one trip uses outside of the inner loops."""
        count = self.slots[loop.first : loop.end].sum(0)
        for inner in loop.inner:
            count = count - self.slots[inner.first : inner.end].sum(0)
        return dict(zip(UNITS, map(int, count), strict=True))


@functools.cache
def record() -> pathlib.Path:
    """Has the compiler write what it schedules into a temporary folder, if it is not loaded yet."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='xception_flax_schedule_'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = (
        f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true '
        f'--xla_jf_dump_llo_pass_label_regex=^{CODE}|^{SLOTS}'
    )
    os.environ['LIBTPU_INIT_ARGS'] = f'{os.environ.get("LIBTPU_INIT_ARGS", "")} {options}'.strip()
    return folder


def collect(folder: pathlib.Path, names: Collection[str] | None = None) -> dict[str, Schedule]:
    """Reads what was written, or some of it, by XLA's name of the operation; removes all of it."""
    code, slots = dict[str, Loop](), dict[str, np.ndarray]()
    for path in folder.iterdir():
        match = re.fullmatch(rf'\d+-(.+)-\d+-({CODE}|{SLOTS})\.txt', path.name)
        if match and (names is None or match[1] in names):
            if match[2] == CODE:
                code[match[1]] = parse(path.read_text())
            else:
                slots[match[1]] = parse_slots(path.read_text())
        path.unlink()
    return {name: Schedule(whole, slots[name]) for name, whole in code.items()}


def parse(text: str) -> Loop:
    """The loops of machine code.

    A loop ends with a branch back to the region that it starts with, if a counter is below a
    constant. The loop over the steps of a kernel's grid runs `FILLING` times more, to fill and
    empty its pipeline, and computes nothing then.
    """
    starts, trips, found = dict[str, int](), dict[str, int](), list[Loop]()
    grids, number = list[int](), -1
    for line in text.splitlines():
        if (match := _BUNDLE.match(line)) is None:
            continue
        number, rest = int(match[1], 16), match[2]
        for region in _REGION.findall(rest):
            starts.setdefault(region, number)
        trips.update((name, int(count)) for name, count in _TEST.findall(rest))
        if 'iteration index, stage' in rest:
            grids.append(number)
        branch = _BRANCH.search(rest)
        if branch and branch[1] in trips and starts.get(branch[2], number + 1) <= number:
            first = starts[branch[2]]
            runs = trips[branch[1]]
            if grids and grids[-1] >= first:
                runs, grids = runs - FILLING, []
            found.append(Loop(first, number + 1 + _DELAY, runs))
    return _nest(Loop(0, number + 1, 1), sorted(found, key=lambda loop: (loop.first, -loop.end)))


def _nest(loop: Loop, others: Sequence[Loop]) -> Loop:
    """`loop` with those of the others that it contains; the others by their first bundle."""
    within = [o for o in others if loop.first <= o.first and o.end <= loop.end]
    inner = list[Loop]()
    for i, each in enumerate(within):
        if not inner or each.first >= inner[-1].end:
            inner.append(_nest(each, within[i + 1 :]))
    return dataclasses.replace(loop, inner=tuple(inner))


def parse_slots(text: str) -> np.ndarray:
    """The slots that each bundle uses, `[bundles, len(UNITS)]`."""
    _, _, rows = text.partition('UTILIZATION:')
    return np.array([line.split() for line in rows.splitlines() if line.strip()], int)
