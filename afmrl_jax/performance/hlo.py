"""The text of a compiled program as computations of instructions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from afmrl_jax.errors import RunError

_BITS = {
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s4", "u4"), 4),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 16),
    **dict.fromkeys(("f32", "s32", "u32"), 32),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 64),
    "c128": 128,
}
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_OPERAND = re.compile(r"%([\w.\-]+)")
_CHIP_MEMORY = re.compile(r"S\([1-9]\d*\)")


@dataclass(frozen=True)
class HloArray:
    """An array that an instruction gives."""

    dtype: str
    """As HLO writes it: `bf16`, `f32`, `pred`."""
    dims: tuple[int, ...]
    on_chip: bool = False
    """Whether it lies in a TPU's own fast memory, so that using it is no traffic."""

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in memory, without the padding of a layout."""
        bits = _BITS.get(self.dtype, 8)
        return self.count * bits // 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    rest: str
    """Everything after the opening bracket of the operands."""
    root: bool = False

    @cached_property
    def arrays(self) -> tuple[HloArray, ...]:
        """What it gives, tuples flattened; tokens and opaque values are left out."""
        return tuple(
            HloArray(
                dtype,
                tuple(int(x) for x in shape.split(",") if x),
                bool(_CHIP_MEMORY.search(layout)),
            )
            for dtype, shape, layout in _ARRAY.findall(self.type)
            if dtype in _BITS or dtype.startswith("f8")
        )

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it reads, in order."""
        return tuple(_OPERAND.findall(self.inside))

    @cached_property
    def inside(self) -> str:
        """The text between the brackets: operands, the number of a parameter, a constant."""
        return self.rest[: _closed(self.rest, 1)]

    @property
    def called(self) -> list[tuple[str, str]]:
        """Computations that it runs, each with how: `calls`, `body`, `condition`, ..."""
        found = _CALLED.findall(self.rest)
        for listed in _BRANCHES.findall(self.rest):
            found += [("branch_computation", x.strip().lstrip("%")) for x in listed.split(",")]
        return found

    @property
    def source(self) -> str:
        """Where in the traced function it comes from; its name where the text does not say."""
        found = _SOURCE.search(self.rest)
        return found[1] if found else self.name

    @property
    def index(self) -> int:
        """Which element a `get-tuple-element` takes; which one a `parameter` is."""
        if self.opcode == "parameter":
            return int(self.inside)
        found = re.search(r"\bindex=(\d+)", self.rest)
        return int(found[1]) if found else 0

    def ints(self, attribute: str) -> tuple[int, ...]:
        """The numbers of an attribute such as `lhs_contracting_dims={1}`."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.rest)
        return tuple(int(x) for x in found[1].split(",") if x) if found else ()


class Computation(dict[str, Instruction]):
    """Instructions by name, in order."""

    @property
    def root(self) -> Instruction:
        """The one that gives the result."""
        return next((x for x in self.values() if x.root), list(self.values())[-1])

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By their numbers."""
        return {x.index: x for x in self.values() if x.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {name: [] for name in self}
        for one in self.values():
            for operand in dict.fromkeys(one.operands):
                if operand in found:
                    found[operand].append(one)
        return found

    def through(self, name: str, opcodes: tuple[str, ...] = ("bitcast",)) -> Instruction | None:
        """The instruction of that name, or the one behind it that is none of `opcodes`."""
        found = self.get(name)
        while found is not None and found.opcode in opcodes and found.operands:
            found = self.get(found.operands[0])
        return found


@dataclass(frozen=True)
class Program:
    """The computations of a program, and the one it starts with."""

    computations: dict[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read `compiled.as_text()`, or the text of one of XLA's passes.

        Raises:
            RunError: the text has no entry computation.
        """
        found: dict[str, Computation] = {}
        entry, current = "", None
        for raw in text.splitlines():
            header = _HEADER.match(raw)
            if header:
                current = found.setdefault(header[2], Computation())
                entry = header[2] if header[1] else entry
            elif raw.startswith("}"):
                current = None
            elif current is not None:
                one = _instruction(raw)
                if one is not None:
                    current[one.name] = one
        if not entry:
            raise RunError("this text has no ENTRY computation; pass `compiled.as_text()`")
        return cls(found, entry)

    @cached_property
    def inner(self) -> set[str]:
        """Computations that are a part of one instruction: bodies of fusions, and reducers."""
        return {
            name
            for _, one in self.all()
            for how, name in one.called
            if (how == "to_apply" and one.opcode != "call") or one.opcode == "fusion"
        }

    def of(self, name: str) -> Computation:
        """A computation; empty where the text leaves it out."""
        return self.computations.get(name, Computation())

    def branches(self, one: Instruction) -> list[str]:
        """Computations of which a conditional runs one."""
        return [name for how, name in one.called if how.endswith("_computation")]

    def called(self, one: Instruction, how: str) -> str:
        """The computation that an instruction runs in a way; "" for none."""
        return next((name for way, name in one.called if way == how), "")

    def all(self) -> Iterator[tuple[str, Instruction]]:
        """Every instruction with the name of its computation."""
        for name, computation in self.computations.items():
            for one in computation.values():
                yield name, one

    def trips(self, loop: Instruction) -> int | None:
        """Turns of a `while`, as XLA states them or as `jax.lax.scan` counts: from 0 to a constant.

        None where the text does not say.
        """
        stated = _TRIPS.search(loop.rest)
        if stated:
            return int(stated[1])
        lines = self.of(self.called(loop, "condition"))
        last = lines.root if lines else None
        if last is None or last.opcode != "compare" or "direction=LT" not in last.rest:
            return None
        counter, bound = (lines.get(x) for x in last.operands)
        if counter is None or counter.opcode not in ("get-tuple-element", "parameter"):
            return None
        if bound is None or bound.opcode != "constant" or bound.arrays[0].dtype[0] not in "su":
            return None
        return int(bound.inside) if bound.inside.isdecimal() else None


def _closed(text: str, depth: int = 0) -> int:
    """Place of the bracket that closes the `depth` ones open at the start."""
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return place
    return len(text)


def _instruction(raw: str) -> Instruction | None:
    text = raw.strip()
    name, equals, rest = text.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    space = rest.find(" ", _closed(rest) if rest.startswith("(") else 0)
    opcode, bracket, after = rest[space + 1 :].partition("(")
    if not bracket:
        return None
    return Instruction(name.lstrip("%"), rest[:space], opcode, after, text.startswith("ROOT "))
