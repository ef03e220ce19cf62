"""One program for one target: compiled, counted, and held to its rules."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import jax

from afmrl_jax.errors import RunError
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.performance.collectives import bytes_by_axis, collectives
from afmrl_jax.performance.compiled.attention import noting_masks
from afmrl_jax.performance.compiled.checks import (
    Finding,
    host_requests,
    vocabulary_products,
    wide_products,
)
from afmrl_jax.performance.compiled.moves import moved_in_loop
from afmrl_jax.performance.compiled.products import Product, products
from afmrl_jax.performance.compiled.programs import Case
from afmrl_jax.performance.compiled.targets import Target, devices
from afmrl_jax.performance.compiled.traffic import loop_shares, loop_traffic, traffic
from afmrl_jax.performance.hlo import Instruction, Program
from afmrl_jax.runtime.compilation import compiling_anew
from afmrl_jax.runtime.hardware import Backend, building_for
from afmrl_jax.types import JsonObject


@dataclass
class Inspected:
    """What a compiled program holds."""

    name: str
    seconds: float
    """Of lowering and compiling."""
    argument_bytes: int
    temporary_bytes: int
    bytes: int
    """Read and written by the program, or by a turn of its token loop."""
    flops: float
    """Of its matrix products, or of those in a turn of the token loop."""
    by_precision: dict[str, float]
    """Operations by types and precision, of the whole program."""
    vocab_products: int = 0
    shares: dict[str, int] = field(default_factory=dict)
    """Bytes of a turn of the token loop by what they are, see `loop_shares`."""
    bytes_ratio: float | None = None
    """Bytes of a turn over weights and cache."""
    flops_ratio: float | None = None
    """Operations over those of the table."""
    exchanged: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bytes that each of eight devices sends, by axes and kind."""
    findings: list[Finding] = field(default_factory=list)

    def record(self) -> JsonObject:
        """As a part of the benchmark's JSON."""
        return {
            "part": self.name,
            "compile_seconds": round(self.seconds, 1),
            "argument_bytes": self.argument_bytes,
            "temporary_bytes": self.temporary_bytes,
            "bytes": self.bytes,
            "bytes_by_kind": self.shares,
            "flops": self.flops,
            "flops_by_precision": self.by_precision,
            "vocab_products": self.vocab_products,
            "bytes_ratio": self.bytes_ratio,
            "flops_ratio": self.flops_ratio,
            "bytes_sent_on_eight": self.exchanged,
            "findings": [f"{x.rule}: {x}" for x in self.findings],
        }


def inspect(case: Case, aim: Target, kept: Path | None = None, *, eight: bool = True) -> Inspected:
    """Compile a program for one device and for a mesh of eight, and look inside.

    Args:
        case: the program.
        aim: what it is compiled for.
        kept: a folder for the compiled text; None keeps none.
        eight: whether to compile it for eight devices too.

    Raises:
        ConfigError: the target's compiler is not installed.
        RunError: XLA cannot compile the program for it.
    """
    began = time.perf_counter()
    program, memory, text = _compiled(case, aim, 1)
    seconds = time.perf_counter() - began
    if kept is not None:
        (kept / f"{case.name}.{aim.name}.hlo").write_text(text, encoding="utf-8")
    found = look(case, program, aim.backend)
    found.seconds = seconds
    found.argument_bytes, found.temporary_bytes = memory
    if case.attends and aim.backend == "gpu":
        found.findings += _masks(case, aim)
    if eight and case.meshes:
        _, _, text = _compiled(case, aim, 8)
        sizes = {"data": 8, "model": 1}
        sent = collectives(text, sizes, unknown_trips=case.turns)
        found.exchanged = bytes_by_axis(sent)
    return found


def look(case: Case, program: Program, backend: Backend = "gpu") -> Inspected:
    """Counts and findings of a compiled program; times and memory are left at zero.

    TPUs multiply float32 in bfloat16 parts on their matrix units, and gather slowly, so products
    are held to nothing there.
    """
    everything = products(program, unknown_trips=case.turns)
    by_precision: dict[str, float] = defaultdict(float)
    for x in everything:
        by_precision[f"{x.left.dtype} {x.right.dtype} {x.precision}"] += x.flops
    loop = token_loop(program) if case.token_loop else None
    if loop is None:
        moved, flops = traffic(program, program.entry), sum(x.flops for x in everything)
    else:
        moved = loop_traffic(program, loop)
        flops = sum(x.flops for x in products(program, start=program.called(loop, "body")))
    found = Inspected(case.name, 0.0, 0, 0, moved, flops, dict(by_precision))
    if loop is not None:
        found.shares = loop_shares(program, loop)
    if case.ideal_bytes:
        found.bytes_ratio = moved / case.ideal_bytes
    if case.ideal_flops:
        found.flops_ratio = flops / case.ideal_flops
    found.findings = host_requests(program)
    if backend == "gpu":
        found.findings += wide_products(everything)
    if loop is not None:
        found.findings += moved_in_loop(program, loop)
    if case.vocab:
        over = vocabulary_products(everything, case.vocab)
        found.vocab_products = len(over)
        if backend == "gpu":
            found.findings += [_over_vocabulary(x) for x in over]
    return found


def _over_vocabulary(one: Product) -> Finding:
    return Finding(
        "vocabulary",
        one.name,
        f"a product over {one.contracted} terms, {one.flops:.2g} operations, from {one.source}",
        "gather the rows of each query's terms (the form `gather` of BM25)",
    )


def token_loop(program: Program) -> Instruction:
    """The loop over tokens: the one that ends when all samples have ended.

    Raises:
        RunError: there is none, or more than one.
    """
    open_ended = [x for _, x in program.all() if x.opcode == "while" and not program.trips(x)]
    if len(open_ended) != 1:
        raise RunError(
            f"{len(open_ended)} loops have no fixed number of turns; a program that decodes has "
            "one, over tokens"
        )
    return open_ended[0]


def _masks(case: Case, aim: Target) -> list[Finding]:
    mesh = make_mesh(1, 1, devices(aim, 1))
    with building_for(aim.backend), jax.set_mesh(mesh), noting_masks() as found:
        case.lower(mesh)
    return found


def _compiled(case: Case, aim: Target, count: int) -> tuple[Program, tuple[int, int], str]:
    mesh = make_mesh(count, 1, devices(aim, count))
    try:
        with building_for(aim.backend), jax.set_mesh(mesh), compiling_anew():
            program = _finished(case.lower(mesh), aim)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:300]
        raise RunError(
            f"{case.name}: XLA does not compile it for {count} {aim.name} ({reason}); leave it out "
            "with --programs, or take a smaller batch"
        ) from error
    memory, text = program.memory_analysis(), program.as_text() or ""
    sizes = (0, 0)
    if memory is not None:
        sizes = int(memory.argument_size_in_bytes), int(memory.temp_size_in_bytes)
    return Program.parse(text), sizes, text


def _finished(lowered: jax.stages.Lowered, aim: Target) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if aim.backend != "gpu" or "tile sizes" not in str(error):
            raise
    # Without a card XLA cannot try which kernel multiplies best, and its own do not take all
    # shapes; those of the library do.
    return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
