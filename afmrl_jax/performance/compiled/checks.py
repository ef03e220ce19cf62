"""What must not be in a compiled program: each rule names the instruction and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from afmrl_jax.performance.compiled.products import Product
from afmrl_jax.performance.compiled.traffic import FREE
from afmrl_jax.performance.hlo import Computation, HloArray, Instruction, Program

HOST = re.compile(r"callback|infeed|outfeed|send|recv")
"""Signs of a request to the host, in an operation's name or the target of a custom call."""
WIDE_FLOPS = 1e10
"""Operations from which an exact float32 product is a large one: about 0.2 ms of an H100's float32
units, which have a fifteenth of the rate of bfloat16."""
MASK_SIDE = 128
"""Least length of both sides of a mask over pairs of tokens."""


@dataclass(frozen=True)
class Finding:
    """Something that a program must not hold."""

    rule: str
    instruction: str
    """Its name in the compiled text."""
    what: str
    """The instruction in words: type, bytes, where it comes from."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.instruction}: {self.what}; {self.remedy}"


def host_requests(program: Program) -> list[Finding]:
    """Whatever stops for the host while the program runs."""
    found = []
    for _, one in program.all():
        target = re.search(r'custom_call_target="([^"]*)"', one.rest)
        moved = "is_host_transfer=true" in one.rest or one.opcode in ("infeed", "outfeed")
        if moved or (target and HOST.search(target[1])):
            name = target[1] if target else one.opcode
            found.append(
                Finding(
                    "host",
                    one.name,
                    f"{name} asks the host, from {one.source}",
                    "compute it on the device, or move it in front of the program",
                )
            )
    return found


def wide_products(products: list[Product]) -> list[Finding]:
    """Float32 products of full precision that together have `WIDE_FLOPS` or more."""
    return [
        Finding(
            "float32",
            x.name,
            f"f32{list(x.left.dims)} times f32{list(x.right.dims)} in precision {x.precision}, "
            f"{x.flops:.2g} operations, from {x.source}",
            "multiply in bfloat16 parts (DotAlgorithmPreset.BF16_BF16_F32_X3), or gather",
        )
        for x in products
        if x.wide and x.flops >= WIDE_FLOPS
    ]


def vocabulary_products(products: list[Product], vocab: int) -> list[Product]:
    """Products that sum over the terms of BM25, whose number may be padded to a multiple of 512."""
    most = -(-(vocab + 1) // 512) * 512
    return [x for x in products if vocab <= x.contracted <= most]


def masks(program: Program, lengths: tuple[int, ...]) -> list[Finding]:
    """Tensors over pairs of tokens that attention reads and nothing computed from scores is in.

    A mask or bias over pairs is made of arrays that are much smaller than itself, and scores are
    not: these come from a product of the same size, or are handed on by a loop.

    Args:
        program: a training step.
        lengths: of the sequences that attend.
    """
    found = []
    for name, one in program.all():
        around = program.of(name)
        if name in program.inner or one.opcode in (*FREE, "while") or _multiplies(program, one):
            continue
        for array in one.arrays:
            if not _pairs(array, lengths) or not _made_of_less(around, one, array):
                continue
            found.append(
                Finding(
                    "mask",
                    one.name,
                    f"{array.dtype}{list(array.dims)}, {array.bytes / 1e6:.0f} MB, is a mask or "
                    f"bias over pairs of tokens, from {one.source}",
                    "give attention lengths and causality, or segments in batches of windows",
                )
            )
    return found


def _multiplies(program: Program, one: Instruction) -> bool:
    inside = {x.opcode for _, name in one.called for x in program.of(name).values()}
    return not {"dot", "convolution", "custom-call"}.isdisjoint({one.opcode} | inside)


def _pairs(array: HloArray, lengths: tuple[int, ...]) -> bool:
    if len(array.dims) < 2 or array.dtype not in ("pred", "bf16", "f16", "f32", "s8", "u8"):
        return False
    *_, rows, columns = array.dims
    known = rows in lengths and columns in lengths
    return known and min(rows, columns) >= MASK_SIDE


def _made_of_less(around: Computation, one: Instruction, array: HloArray) -> bool:
    largest = max(
        (x.count for name in one.operands if name in around for x in around[name].arrays),
        default=0,
    )
    return 4 * largest <= array.count
