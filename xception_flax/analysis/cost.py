"""The cost of a compiled program, read from its text and the analyses of the compiler."""

import collections
import dataclasses
import re
import types
from collections.abc import Mapping
from typing import Any

import jax

from xception_flax.analysis import schedule

NOTHING: Mapping[str, Any] = types.MappingProxyType({})
KERNEL = 'custom_call_target="tpu_custom_call"'
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
BETWEEN = 'between slices'  # received over the data-centre network, one 'recv' per exchange
_BYTES = {'f64': 8, 's64': 8, 'u64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's16': 2,
          'u16': 2, 's8': 1, 'u8': 1, 'pred': 1}  # fmt: skip

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one execution per device; a loop body counts once, as in XLA.

    Attributes:
      arguments: bytes of the arguments and of results that are not in donated memory.
      temporaries: bytes of temporary memory.
      flops: operations, an addition and a multiplication counting one each.
      bytes: read from and written to memory, estimate of XLA.
      collectives: bytes of the results by kind of collective operation; `BETWEEN` for the exchanges
        of slices.
      cycles: estimate of the compiler by stage of the network and kind of operation; for kernels,
        of which it has none, the cycles that it schedules.
      unknown: names of kernels of which neither is known.
    """

    arguments: int
    temporaries: int
    flops: float
    bytes: float
    collectives: Mapping[str, int]
    cycles: Mapping[tuple[str, str], int]
    unknown: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes of memory needed."""
        return self.arguments + self.temporaries

    @property
    def total_cycles(self) -> int:
        """The sum of the estimates, as if no two operations overlapped."""
        return sum(self.cycles.values())

    def cycles_by(self, what: int) -> list[tuple[str, int]]:
        """The cycles by stage (0) or kind (1), the largest first."""
        found: collections.Counter[str] = collections.Counter()
        for key, cycles in self.cycles.items():
            found[key[what]] += cycles
        return found.most_common()


def of(compiled: jax.stages.Compiled) -> Cost:
    """Reads the cost of a program that has just been compiled for TPU."""
    text = compiled.as_text() or ''
    lines = [line for line in text.splitlines() if KERNEL in line]
    kernels = {match[1] for match in map(_INSTRUCTION.match, lines) if match}
    return read(compiled, schedule.collect(schedule.record(), kernels))


def read(compiled: jax.stages.Compiled, scheduled: Mapping[str, schedule.Schedule]) -> Cost:
    """Reads the cost of a program, given the schedules of its kernels."""
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    given_back = memory.output_size_in_bytes - memory.alias_size_in_bytes
    text = Text(compiled.as_text() or '', scheduled)
    return Cost(
        arguments=memory.argument_size_in_bytes + given_back,
        temporaries=memory.temp_size_in_bytes,
        flops=costs['flops'],
        bytes=costs['bytes accessed'],
        collectives=text.collectives,
        cycles=text.cycles,
        unknown=tuple(sorted(text.unknown)),
    )


class Text:
    """The text of a program: the instructions of its computations.

    Attributes:
      cycles, collectives, unknown: as in `Cost`.
    """

    def __init__(self, text: str, scheduled: Mapping[str, schedule.Schedule] = NOTHING):
        """Parses the text, given the schedules of kernels by the name of the instruction."""
        # Kernels of the same shapes are compiled once, under the name of one of them.
        self.kernels = {_family(name): each.cycles for name, each in scheduled.items()}
        self.unknown: set[str] = set()
        self.computations: dict[str, list[re.Match]] = {}
        entry, current = '', list[re.Match]()
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
            elif instruction := _INSTRUCTION.match(line):
                current.append(instruction)
        self.cycles: collections.Counter[tuple[str, str]] = collections.Counter()
        self.collectives: collections.Counter[str] = collections.Counter()
        self._add(entry)

    def _add(self, computation: str) -> None:
        """Adds the cost of a computation and of those that it calls."""
        for name, shape, opcode, rest in (
            match.groups() for match in self.computations.get(computation, [])
        ):
            for called in re.findall(r'(?:body|calls)=%?([\w.\-]+)', rest):
                self._add(called)
            collective = opcode.removesuffix('-done')  # the start may return more
            if collective in COLLECTIVES:
                self.collectives[collective] += _size(shape)
            elif opcode == 'recv-done':
                self.collectives[BETWEEN] += _size(shape)
            estimate = re.search(r'"estimated_cycles":"(\d+)"', rest)
            cycles = int(estimate[1]) if estimate else 0
            if KERNEL in rest:
                cycles = self.kernels.get(_family(name), 0)
                self.unknown |= set() if cycles else {_family(name)}
            if cycles:
                path = re.search(r'op_name="([^"]*)"', rest)
                key = stage(path[1] if path else ''), self._kind(opcode, rest)
                self.cycles[key] += cycles

    def _kind(self, opcode: str, rest: str) -> str:
        """The kind of an instruction; of a fusion, that of its longest part."""
        called = re.search(r'calls=%?([\w.\-]+)', rest)
        opcodes = {opcode}
        if called:
            opcodes = {match[3] for match in self.computations[called[1]]}
        kinds = {
            'convolution': ('convolution', 'dot'),
            'pooling': ('reduce-window', 'select-and-scatter'),
            'sum': ('reduce',),
            'kernel': ('custom-call',),
            'copy': ('copy', 'transpose', 'pad', 'slice', 'concatenate'),
        }
        if not called:
            return next((k for k, codes in kinds.items() if opcode in codes), opcode)
        del kinds['copy']  # a fusion that copies also computes something
        return next((k for k, codes in kinds.items() if opcodes & set(codes)), 'elementwise')


def _family(name: str) -> str:
    """The name of an instruction without the number that XLA adds."""
    return re.sub(r'\.\d+$', '', name)


def stage(name: str) -> str:
    """The stage of a step that an operation belongs to, by its path in JAX.

    The blocks of the middle flow are one stage; operations outside the network are the 'update'.
    """
    found = re.search(r'/(?:transpose\()?jvp\((\w+)\)\)?/(.*)|/([A-Z]\w+)/(.*)', name)
    if not found:
        return 'update' if 'train_step' in name else 'rest'
    # Modules, without functions such as 'jit(relu)' and methods such as 'Xception.features'.
    parts = [p for p in (found[2] or found[4]).split('/')[:-1] if not re.search(r'[(.]', p)]
    if not parts:
        return 'rest'
    if parts[0] == 'middle_flow':
        return parts[0]
    return '/'.join(parts[:2]) if parts[0].endswith('_flow') else parts[0]


def _size(shape: str) -> int:
    """Bytes of a shape such as 'f32[2,3]{1,0}', or of all shapes in a tuple."""
    total = 0
    for kind, sides in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', shape):
        count = 1
        for side in filter(None, sides.split(',')):
            count *= int(side)
        total += count * _BYTES.get(kind, 0)
    return total
