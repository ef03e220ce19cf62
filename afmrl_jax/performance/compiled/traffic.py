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
LEAST_BYTES = 1 << 19
"""Size from which an array is a weight or a cache, or a copy counts: half the smallest projection
of keys, in bfloat16. What a token of 64 rows computes is smaller."""
PASSED = ("bitcast", "opt-barrier")


def loop_traffic(program: Program, loop: Instruction) -> int:
    """Bytes of one turn of a `while`: operands and results of its body."""
    return traffic(program, program.called(loop, "body"))


def traffic(program: Program, name: str) -> int:
    """Bytes that one run of a computation reads and writes; loops in it with all their turns."""
    computation = program.of(name)
    return sum(_moved(program, computation, one) for one in computation.values())


def loop_shares(program: Program, loop: Instruction) -> dict[str, int]:
    """Bytes of one turn of a `while` by what they are.

    Args:
        program: compiled.
        loop: its `while`.

    Returns:
        `carried`: what is read of the large arrays that the loop carries, which are weights and
        caches, and written into them in place. `partial`: what products whose sum is split write,
        and what adds it up reads. `other`: activations.
    """
    body = program.of(program.called(loop, "body"))
    kinds = dict.fromkeys(carried_arrays(body), "carried")
    kinds |= {x.name: "partial" for x in body.values() if _added_up(program, body, x)}
    for one in body.values():
        # A cache stays one where something is written into it.
        written = _written_into(program, one)
        if written is not None and kinds.get(written) == "carried":
            kinds[one.name] = "carried"
    found = {"carried": 0, "partial": 0, "other": 0}
    for one in body.values():
        whole = _moved(program, body, one)
        if whole and one.opcode not in ("while", "conditional", "call", "async-start"):
            for operand, size in _read(program, body, one):
                found[kinds.get(operand, "other")] += size
                whole -= size
        found[kinds.get(one.name, "other")] += whole
    return found


def _written_into(program: Program, one: Instruction) -> str | None:
    """The array of which an instruction gives a changed version in place; None for any other."""
    if one.opcode in PASSED and one.operands:
        return one.operands[0]
    if one.opcode == "dynamic-update-slice":
        return one.operands[0]
    inside = program.of(program.called(one, "calls")) if one.opcode == "fusion" else Computation()
    root = inside.through(inside.root.name) if inside else None
    if root is None or root.opcode != "dynamic-update-slice":
        return None
    whole = inside.through(root.operands[0])
    return one.operands[whole.index] if whole is not None and whole.opcode == "parameter" else None


def carried_arrays(body: Computation, wanted: set[int] | None = None) -> set[str]:
    """Large arrays that a body takes from its loop; `wanted` are their places, None for all."""
    found: set[str] = set()
    for one in body.values():
        if one.opcode == "get-tuple-element" and body[one.operands[0]].opcode == "parameter":
            big = sum(x.bytes for x in one.arrays) >= LEAST_BYTES
            if big and (wanted is None or one.index in wanted):
                found.add(one.name)
        elif one.opcode in PASSED and one.operands and one.operands[0] in found:
            found.add(one.name)
    return found


def _added_up(program: Program, body: Computation, one: Instruction) -> bool:
    """Whether a product's results are summed over their first axis by whoever reads them."""
    inside = program.of(program.called(one, "calls")) if one.opcode == "fusion" else None
    dot = one if inside is None else inside.through(inside.root.name)
    if dot is None or dot.opcode != "dot" or not dot.ints("lhs_batch_dims"):
        return False
    users = [x for x in body.users[one.name] if x.opcode == "fusion"]
    return any(_reduces(program, x, x.operands.index(one.name)) for x in users)


def _reduces(program: Program, fusion: Instruction, operand: int) -> bool:
    inside = program.of(program.called(fusion, "calls"))
    parameter = inside.parameters.get(operand)
    return parameter is not None and any(
        x.opcode == "reduce"
        and x.ints("dimensions") == (0,)
        and inside.through(x.operands[0]) is parameter
        for x in inside.values()
    )


def _read(program: Program, around: Computation, one: Instruction) -> list[tuple[str, int]]:
    """Bytes that an instruction reads of each operand."""
    if one.opcode in SLICES or one.opcode == "dynamic-update-slice":
        return [(one.operands[0], _bytes(one))] if one.opcode in SLICES else []
    inside = program.of(program.called(one, "calls")) if one.opcode == "fusion" else Computation()
    if not inside:
        return [(x, _bytes(around.get(x))) for x in one.operands]
    return [
        (x, min(_bytes(around.get(x)), bytes_read(inside, inside.parameters[number].name)))
        for number, x in enumerate(one.operands)
        if number in inside.parameters
    ]


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
        return _fused(program, around, one)
    return _result(one) + sum(map(_bytes, operands))


def _result(one: Instruction) -> int:
    if one.opcode == "custom-call" and "__cublas" in one.rest:
        # The second array is room to work in.
        return sum(x.bytes for x in one.arrays if x.dtype != "s8" or len(one.arrays) == 1)
    return _bytes(one)


def _fused(program: Program, around: Computation, one: Instruction) -> int:
    inside = program.of(program.called(one, "calls"))
    total = sum(size for _, size in _read(program, around, one))
    if not inside:
        return _bytes(one) + total
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
