"""Matrix products of a compiled program: shapes, types, precision and operations, from its text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from afmrl_jax.performance.hlo import Computation, HloArray, Instruction, Program

_GEMM = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_PRECISION = re.compile(r'operand_precision=\{([^}]*)\}|"operand_precision":\[([^\]]*)\]')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclass(frozen=True)
class Product:
    """One product of a program."""

    name: str
    """Of its instruction, or of the fusion that it is in."""
    left: HloArray
    right: HloArray
    result: HloArray
    contracted: int
    """Numbers summed for each result."""
    precision: str
    """`default`, `high` or `highest`, or the algorithm where one is asked for."""
    times: int
    """How often the program runs it."""
    source: str

    @property
    def flops(self) -> float:
        """Operations of all runs; a multiplication and an addition are two."""
        return 2.0 * self.result.count * self.contracted * self.times

    @property
    def wide(self) -> bool:
        """Whether it multiplies float32 exactly, which takes no tensor core."""
        floats = self.left.dtype == self.right.dtype == "f32"
        return floats and self.precision in ("high", "highest")


def products(program: Program, *, unknown_trips: int = 1, start: str = "") -> list[Product]:
    """All products of a program, those inside loops with their trip counts.

    Args:
        program: compiled, or after some pass of XLA.
        unknown_trips: turns of loops for which the text gives none.
        start: the computation to begin with; the entry by default.
    """
    return list(_walk(program, start or program.entry, 1, unknown_trips, ""))


def _walk(program: Program, name: str, times: int, unknown: int, outer: str) -> Iterator[Product]:
    computation = program.of(name)
    for one in computation.values():
        found = _product(computation, one, times, outer or one.name)
        if found is not None:
            yield found
        if one.opcode == "while":
            turns = times * (program.trips(one) or unknown)
            yield from _walk(program, program.called(one, "body"), turns, unknown, "")
        elif one.opcode == "conditional":
            dearest = max(
                (list(_walk(program, x, times, unknown, "")) for x in program.branches(one)),
                key=lambda found: sum(x.flops for x in found),
                default=[],
            )
            yield from dearest
        elif one.opcode in ("fusion", "call", "async-start"):
            inside = (outer or one.name) if one.opcode == "fusion" else ""
            for _, called in one.called:
                yield from _walk(program, called, times, unknown, inside)


def _product(around: Computation, one: Instruction, times: int, name: str) -> Product | None:
    if one.opcode not in ("dot", "convolution", "custom-call") or len(one.operands) < 2:
        return None
    sides = [around[x].arrays for x in one.operands[:2] if x in around]
    if len(sides) < 2 or not all(sides) or not one.arrays:
        return None
    left, right, result = sides[0][0], sides[1][0], one.arrays[0]
    if one.opcode == "dot":
        contracted = math.prod(left.dims[x] for x in one.ints("lhs_contracting_dims"))
    elif one.opcode == "convolution":
        contracted = _summed(one, left, right, result)
    else:
        found = _GEMM.search(one.rest)
        if "__cublas" not in one.rest or found is None:
            return None
        contracted = math.prod(left.dims[int(x)] for x in re.findall(r"\d+", found[1]))
    return Product(name, left, right, result, contracted, _precision(one), times, one.source)


def _precision(one: Instruction) -> str:
    algorithm = re.search(r"\balgorithm=(\w+)|\"algorithm\":\"(ALG_DOT_\w+)\"", one.rest)
    if algorithm:
        return (algorithm[1] or algorithm[2]).lower()
    stated = re.search(
        r"operand_precision=\{([^}]*)\}|\"operand_precision\":\[([^\]]*)\]", one.rest
    )
    text = (stated[1] or stated[2] or "").lower() if stated else ""
    return next((x for x in ("highest", "high") if x in text), "default")


def _summed(one: Instruction, left: HloArray, right: HloArray, result: HloArray) -> int:
    """Numbers summed for each result of a convolution, as which TPUs write their products."""
    labels = _LABELS.search(one.rest)
    if labels is None:
        return 0
    inputs, kernel, outputs = labels.groups()
    total = float(right.dims[kernel.index("i")])
    for space in (x for x in kernel if x.isdigit()):
        total *= _window_share(
            left.dims[inputs.index(space)],
            result.dims[outputs.index(space)],
            _windows(one.rest, int(space)),
        )
    return max(1, round(total))


def _windows(text: str, place: int) -> dict[str, tuple[int, ...]]:
    """Size, stride, padding and dilations of a convolution along one axis."""
    window = re.search(r"window=\{([^}]*)\}", text)
    found = {"size": (1,), "stride": (1,), "pad": (0, 0), "lhs_dilate": (1,), "rhs_dilate": (1,)}
    for key, value in re.findall(r"(\w+)=([\d_x\-]+)", window[1] if window else ""):
        if key in found:
            found[key] = tuple(int(x) for x in value.split("x")[place].split("_"))
    return found


def _window_share(width: int, results: int, window: dict[str, tuple[int, ...]]) -> float:
    """Places of the kernel that meet a number, on average over the results along one axis."""
    (size,), (stride,), (low, _) = window["size"], window["stride"], window["pad"]
    (spread,), (apart,) = window["lhs_dilate"], window["rhs_dilate"]
    met = 0
    for out, at in itertools.product(range(results), range(size)):
        place = out * stride + at * apart - low
        met += place % spread == 0 and 0 <= place // spread < width
    return met / results
