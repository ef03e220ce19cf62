"""Bytes that a part of a compiled program reads and writes, from its text.

Every instruction that runs by itself reads its operands from memory and writes its result; inside
of a fusion nothing does. Of an operand that a fusion only slices or gathers from, the slices count;
of one that it writes a part of in place, the part.
"""

from __future__ import annotations

from afmrl_jax.performance.hlo import Computation, Instruction, Program

SLICES = ("dynamic-slice", "slice", "gather")
FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "iota",
    )
)
"""Operations without traffic of their own."""


def loop_traffic(program: Program, loop: Instruction) -> int:
    """Bytes of one turn of a `while`: operands and results of its body."""
    return traffic(program, program.called(loop, "body"))


def traffic(program: Program, name: str) -> int:
    """Bytes that one run of a computation reads and writes; loops in it with all their turns."""
    computation = program.of(name)
    return sum(_moved(program, computation, one) for one in computation.values())


def _bytes(one: Instruction | None) -> int:
    return 0 if one is None else sum(x.bytes for x in one.arrays if not x.on_chip)


def _moved(program: Program, around: Computation, one: Instruction) -> int:
    code = one.opcode
    if code in FREE or code.endswith("-done"):
        return 0
    if code == "while":
        return (program.trips(one) or 1) * loop_traffic(program, one)
    if code == "conditional":
        return max((traffic(program, x) for x in program.branches(one)), default=0)
    if code in ("call", "async-start"):
        return sum(traffic(program, x) for _, x in one.called)
    operands = [around.get(x) for x in one.operands]
    if code in SLICES:
        return 2 * _bytes(one)
    if code == "dynamic-update-slice":
        return 2 * _bytes(operands[1])
    if code == "copy-start":
        # Its result holds both ends of the copy.
        return sum(x.bytes for x in one.arrays[:2] if not x.on_chip)
    if code == "fusion":
        return _fused(program, one, operands)
    return _result(one) + sum(map(_bytes, operands))


def _result(one: Instruction) -> int:
    if one.opcode == "custom-call" and "__cublas" in one.rest:
        # The second array is room to work in.
        return sum(x.bytes for x in one.arrays if x.dtype != "s8" or len(one.arrays) == 1)
    return _bytes(one)


def _fused(program: Program, one: Instruction, operands: list[Instruction | None]) -> int:
    inside = program.of(program.called(one, "calls"))
    if not inside:
        return _bytes(one) + sum(map(_bytes, operands))
    total = sum(
        min(_bytes(x), bytes_read(inside, inside.parameters[number].name))
        for number, x in enumerate(operands)
        if number in inside.parameters
    )
    root = inside.root
    parts = [inside.get(x) for x in root.operands] if root.opcode == "tuple" else [root]
    kept = [x.on_chip for x in one.arrays]
    for number, part in enumerate(parts):
        if number < len(kept) and kept[number]:
            continue
        written = None if part is None else inside.through(part.name)
        if written is not None and written.opcode == "dynamic-update-slice":
            part = inside.get(written.operands[1])
        total += 0 if part is None else sum(x.bytes for x in part.arrays)
    return total


def bytes_read(inside: Computation, name: str) -> int:
    """Bytes of an operand that a fusion reads, by what becomes of it there."""
    total = 0
    for user in inside.users[name]:
        if user.opcode == "bitcast":
            total += bytes_read(inside, user.name)
        elif user.opcode in SLICES and user.operands[0] == name:
            total += sum(x.bytes for x in user.arrays)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return sum(x.bytes for x in inside[name].arrays)
    return total
