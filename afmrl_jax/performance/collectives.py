"""Bytes that the devices of a mesh exchange, read from the text of a compiled program."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.performance.hlo import Computation, Instruction, Program

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
KINDS: tuple[str, ...] = get_args(Kind)
UNREAD = ("ragged-all-to-all", "collective-broadcast")
"""Operations between devices that this package's steps never have, and that are not counted."""

_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{([\d,{} ]*)\}")


@dataclass(frozen=True)
class Collective:
    """One exchange between devices."""

    kind: Kind
    axes: tuple[str, ...]
    """Mesh axes it runs along, in mesh order; a part of an axis counts as the axis."""
    group: int
    """Devices that exchange with one another."""
    payload: int
    """Bytes of the whole array that a group gathers, sums or scatters."""
    sent: int
    """Bytes that each device sends, by the ring algorithm; for a permute, the mean over devices."""
    times: int
    """How often a step runs it: the product of the trip counts of the loops around it."""
    known: bool
    """Whether all those trip counts are known; if not, `times` includes the caller's guess."""
    sliced: bool
    """A sum of which every device takes only a slice: the compilers for GPUs and TPUs turn such an
    all-reduce into a reduce-scatter, which sends half as much."""
    source: str
    """Where in the traced function it comes from."""

    @property
    def total(self) -> int:
        """Bytes that each device sends in a step."""
        return self.sent * self.times


def collectives(text: str, sizes: Mapping[str, int], *, unknown_trips: int = 1) -> list[Collective]:
    """All exchanges of a program; those inside loops with their trip counts.

    With payload p, each of n devices in a ring sends (n - 1) / n p for an all-gather, a
    reduce-scatter and an all-to-all, and twice that for an all-reduce. Of a conditional, only the
    branch that sends most counts.

    Args:
        text: `compiled.as_text()` of a program partitioned over a mesh, or the text of one of
            XLA's passes after the partitioner.
        sizes: size of each mesh axis, in the order of the mesh, as `mesh.shape` has it.
        unknown_trips: trip count of loops for which the text gives none, such as one that ends
            when all samples have ended.

    Raises:
        RunError: the text has no entry computation, or device groups in an unknown form.
    """
    program = Program.parse(text)
    devices = math.prod(sizes.values())
    memo: dict[str, list[Collective]] = {}

    def visit(name: str) -> list[Collective]:
        if name not in memo:
            memo[name] = []
            lines = program.of(name)
            for line in lines.values():
                memo[name] += inside(line, lines)
        return memo[name]

    def inside(line: Instruction, around: Computation) -> list[Collective]:
        kind = line.opcode.removesuffix("-start")
        if kind in UNREAD:
            raise RunError(
                f"{line.name}: {kind} is not counted; add it to performance/collectives.py"
            )
        if kind in KINDS:
            found = _collective(line, kind, sizes, devices)
            if found is None:
                return []
            sliced = kind == "all-reduce" and _is_sliced(line, around)
            return [replace(found, sliced=sliced)]
        if line.opcode == "while":
            trips = program.trips(line)
            return [
                replace(x, times=x.times * (trips or unknown_trips), known=x.known and bool(trips))
                for x in visit(program.called(line, "body"))
            ]
        if line.opcode == "conditional":
            branches = map(visit, program.branches(line))
            return max(branches, key=lambda x: sum(y.total for y in x), default=[])
        return [x for _, name in line.called for x in visit(name)]

    return visit(program.entry)


def bytes_by_axis(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Bytes that each device sends in a step, by axes (`data`, `model`, `data+model`) and kind."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in found:
        totals["+".join(one.axes)][one.kind] += one.total
    return {axis: dict(sorted(kinds.items())) for axis, kinds in sorted(totals.items())}


def _is_sliced(line: Instruction, around: Computation) -> bool:
    return {x.opcode for x in around.users[line.name]} == {"dynamic-slice"}


def _collective(
    line: Instruction, kind: str, sizes: Mapping[str, int], devices: int
) -> Collective | None:
    arrays = [x.bytes for x in line.arrays]
    if line.opcode.endswith("-start") and kind == "collective-permute":
        arrays = arrays[1:2]  # Operand, result and two counters.
    elif line.opcode.endswith("-start") and kind == "all-gather":
        arrays = arrays[len(arrays) // 2 :]  # Operands, then results.
    held = sum(arrays)
    where = line.source
    if kind == "collective-permute":
        pairs = [x for x in _pairs(line) if x[0] != x[1]]
        if not pairs:
            return None
        axes = _axes(pairs, sizes)
        sent = held * len(pairs) // devices
        return Collective("collective-permute", axes, 2, held, sent, 1, True, False, where)
    groups = _groups(line, devices)
    n = len(groups[0])
    if n < 2:
        return None
    payload = held * n if kind == "reduce-scatter" else held
    sent = payload * (n - 1) // n * (2 if kind == "all-reduce" else 1)
    known: dict[str, Kind] = {x: x for x in get_args(Kind)}
    return Collective(known[kind], _axes(groups, sizes), n, payload, sent, 1, True, False, where)


def _numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]


def _pairs(line: Instruction) -> list[list[int]]:
    found = _PAIRS.search(line.rest)
    return [_numbers(x) for x in re.findall(r"\{[^{}]*\}", found[1])] if found else []


def _groups(line: Instruction, devices: int) -> list[list[int]]:
    """Which devices exchange with each other, in any of the three forms that XLA writes."""
    listed = _LISTED.search(line.rest)
    if listed:
        inner = re.findall(r"\{([^{}]*)\}", listed[1] or "")
        return [_numbers(x) for x in inner] or [list(range(devices))]
    iota = _IOTA.search(line.rest)
    if iota:
        shape, dims, order = (_numbers(x or "") for x in iota.groups())
        return _ids(dims, order).reshape(shape).tolist()
    named = _NAMED.search(line.rest)
    # A name with a colon is a part of an axis.
    if named and ":" not in named[4]:
        names = re.findall(r"'([^']+)'=", named[1])
        shape = [int(x) for x in re.findall(r"=(\d+)", named[1])]
        ids = _ids(_numbers(named[2] or "") or shape, _numbers(named[3] or "")).reshape(shape)
        wanted = [names.index(x) for x in re.findall(r"'([^']+)'", named[4])]
        order = [n for n in range(len(names)) if n not in wanted] + wanted
        count = math.prod(shape[n] for n in wanted)
        return ids.transpose(order).reshape(-1, count).tolist()
    raise RunError(
        f"{line.name}: device groups in an unknown form "
        f"({line.rest[line.rest.find('replica_groups') :][:120]}); add it to "
        "performance/collectives.py"
    )


def _ids(dims: list[int], order: list[int]) -> np.ndarray:
    """Numbers from 0 in the shape `dims`, its axes transposed if an order is given."""
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order) if order else ids


def _axes(groups: list[list[int]], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the members of some group differ."""
    shape = tuple(sizes.values())
    varies = np.zeros(len(shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        varies |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, own in zip(sizes, varies, strict=True) if own)
