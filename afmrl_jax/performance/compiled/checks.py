"""What must not be in a compiled program: each rule names the instruction and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from afmrl_jax.performance.compiled.products import Product
from afmrl_jax.performance.hlo import Program

HOST = re.compile(r"callback|infeed|outfeed|send|recv")
"""Signs of a request to the host, in an operation's name or the target of a custom call."""
WIDE_FLOPS = 1e10
"""Operations from which an exact float32 product is a large one: 0.15 ms at the 67 TFLOP/s that
NVIDIA states for an H100's float32 units, a fifteenth of its rate in bfloat16."""


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


def grouped(found: list[Finding]) -> list[str]:
    """A line for each kind of finding; layers alike are told once, with their number."""
    lines: dict[tuple[str, str], list[Finding]] = {}
    for one in found:
        what = one.what.replace(one.instruction, "")
        lines.setdefault((one.rule, what), []).append(one)
    return [
        str(alike[0]) + (f" (and {len(alike) - 1} more alike)" if len(alike) > 1 else "")
        for alike in lines.values()
    ]


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
    """Float32 products of full precision that have `WIDE_FLOPS` or more in all their runs."""
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
