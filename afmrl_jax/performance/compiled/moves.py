"""Copies of weights and caches that a loop makes at every turn."""

from __future__ import annotations

from collections.abc import Iterator

from afmrl_jax.performance.compiled.checks import Finding
from afmrl_jax.performance.compiled.traffic import (
    LEAST_BYTES,
    bytes_read,
    carried_arrays,
)
from afmrl_jax.performance.hlo import Instruction, Program

MOVES = frozenset(
    ("copy", "copy-start", "slice", "dynamic-slice", "concatenate", "convert", "transpose", "pad")
)
"""Operations that give what they read, in another place, order or type."""
WORK = frozenset(("dot", "convolution", "reduce", "gather", "custom-call", "scatter"))
"""Operations for the sake of which a fusion may read all of an array."""


def moved_in_loop(program: Program, loop: Instruction) -> list[Finding]:
    """What a loop copies, slices, joins or converts at every turn of the arrays that it carries.

    Weights are carried unchanged; caches are written in place, which is no copy.

    Args:
        program: compiled.
        loop: its `while`.
    """
    body = program.called(loop, "body")
    return list(_moved(program, body, carried_arrays(program.of(body))))


def _moved(program: Program, name: str, carried: set[str]) -> Iterator[Finding]:
    body = program.of(name)
    for one in body.values():
        if one.opcode == "while":
            start = body.get(one.operands[0])
            given = start.operands if start is not None and start.opcode == "tuple" else ()
            places = {n for n, x in enumerate(given) if x in carried}
            inner = program.called(one, "body")
            yield from _moved(program, inner, carried_arrays(program.of(inner), places))
        elif one.opcode == "conditional":
            # Each branch has a parameter of its own; their arrays are not followed.
            continue
        else:
            reason = _reason(program, one, carried)
            if reason:
                size = sum(x.bytes for x in one.arrays)
                yield Finding(
                    "moved",
                    one.name,
                    f"{reason} at every turn of the token loop, {one.type.partition('{')[0]} "
                    f"({size / 1e6:.1f} MB), from {one.source}",
                    "hand the loop each layer's weights as an array of its own, in the type of the "
                    "activations, and write caches in place",
                )


def _reason(program: Program, one: Instruction, carried: set[str]) -> str | None:
    read = [n for n, x in enumerate(one.operands) if x in carried]
    if not read or sum(x.bytes for x in one.arrays) < LEAST_BYTES:
        return _converted(program, one, read)
    if one.opcode in MOVES:
        return f"a {one.opcode}"
    if one.opcode != "fusion":
        return None
    inside = program.of(program.called(one, "calls"))
    codes = {x.opcode for x in inside.values()}
    if codes & WORK:
        return _converted(program, one, read)
    written = inside.through(inside.root.name)
    if written is not None and written.opcode == "dynamic-update-slice":
        return None
    if "dynamic-update-slice" in codes and inside.root.opcode == "tuple":
        return None
    for number in read:
        parameter = inside.parameters.get(number)
        if parameter is not None and bytes_read(inside, parameter.name) >= LEAST_BYTES:
            return "a " + (" and ".join(sorted(codes & MOVES)) or "copy")
    return None


def _converted(program: Program, one: Instruction, read: list[int]) -> str | None:
    """Whether a fusion around a product reads a carried array in a wider type than it uses."""
    inside = program.of(program.called(one, "calls"))
    for number in read:
        parameter = inside.parameters.get(number)
        if parameter is None or sum(x.bytes for x in parameter.arrays) < LEAST_BYTES:
            continue
        for user in inside.users[parameter.name]:
            if user.opcode == "convert" and _width(user) < _width(parameter):
                return f"a conversion from {parameter.arrays[0].dtype} in a product"
    return None


def _width(one: Instruction) -> float:
    return one.arrays[0].bytes / max(1, one.arrays[0].count)
