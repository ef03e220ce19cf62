"""Programs of real sizes, compiled for an accelerator that need not be here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import jax

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.performance.compiled.checks import grouped
from afmrl_jax.performance.compiled.inspection import Inspected, inspect
from afmrl_jax.performance.compiled.programs import Case, Sizes, cases
from afmrl_jax.performance.compiled.targets import Name, check_installed, target
from afmrl_jax.performance.record import check_writable, is_record_of, write_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import JsonObject

GOALS = {"bytes_ratio": 1.1, "flops_ratio": 1.1}
"""Most that a turn of decoding may move over weights and cache, and an embedder's step compute over
the table."""


@dataclass(frozen=True)
class Settings:
    """What is compiled, and for what."""

    target: Name = "h100"
    """Kind of accelerator."""
    programs: tuple[str, ...] = ()
    """Names of programs, such as decode; all by default."""
    keep: Path | None = None
    """A folder for the text of every program, PROGRAM.TARGET.hlo."""
    eight: bool = True
    """Also compile for eight devices, for what they exchange."""
    sizes: Sizes = field(default_factory=Sizes)


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Compile, look inside, print, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written, the target's compiler is not installed, or a program
            is unknown; before anything is compiled.
        RunError: a program holds what it must not, or misses a goal; after `out` is written.
    """
    check_writable(out, is_record_of("compiled"))
    aim = target(settings.target)
    check_installed(aim)
    # Only the compilers are needed; without a device their plugin would complain at every start.
    jax.config.update("jax_platforms", "cpu")
    if settings.keep is not None:
        settings.keep.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    details: list[JsonObject] = []
    wrong: list[str] = []
    for case in _chosen(settings):
        try:
            found = inspect(case, aim, settings.keep, eight=settings.eight)
        except RunError as error:
            wrong.append(str(error))
            details.append({"part": case.name, "error": str(error)})
            log_info(str(error))
            continue
        for name, value in figures_of(case, found).items():
            # Of several programs, the worst.
            figures[name] = max(value, figures.get(name, value))
        wrong += faults(found)
        details.append(found.record())
        log_info(described(found))
    details.insert(0, {"target": settings.target, "jax": jax.__version__})
    write_record(out, "compiled", figures, details)
    if wrong:
        raise RunError(f"{len(wrong)} things that a program must not hold:\n" + "\n".join(wrong))
    return figures


def _chosen(settings: Settings) -> list[Case]:
    known = cases(settings.sizes, settings.target)
    unknown = sorted(set(settings.programs) - {x.name for x in known})
    if unknown:
        raise ConfigError(
            f"no program {', '.join(unknown)}; choose from {', '.join(x.name for x in known)}"
        )
    return [x for x in known if not settings.programs or x.name in settings.programs]


def figures_of(case: Case, found: Inspected) -> dict[str, float]:
    """The numbers that are quoted, by name."""
    figures: dict[str, float] = {}
    if found.bytes_ratio is not None:
        figures["decode_bytes_per_token_ratio"] = found.bytes_ratio
    if found.flops_ratio is not None:
        figures["train_flops_ratio"] = found.flops_ratio
    if case.vocab:
        figures["agcl_vocab_products"] = float(found.vocab_products)
    return figures


def faults(found: Inspected) -> list[str]:
    """Lines that name the program, the instruction and what to do."""
    lines = [f"{found.name}: {x}" for x in grouped(found.findings)]
    for name, most in GOALS.items():
        ratio = getattr(found, name)
        if ratio is not None and ratio > most:
            what = "bytes of weights and cache" if name == "bytes_ratio" else "table's operations"
            lines.append(f"{found.name}: {ratio:.2f} times the {what}, more than {most}")
    return lines


def described(found: Inspected) -> str:
    """A paragraph for people."""
    lines = [
        f"{found.name}: {found.seconds:.0f} s, arguments {found.argument_bytes / 1e9:.2f} GB, "
        f"temporaries {found.temporary_bytes / 1e9:.2f} GB, moves {found.bytes / 1e9:.2f} GB, "
        f"{found.flops / 1e12:.3g} TFLOP"
    ]
    for name, label in (("bytes_ratio", "weights and cache"), ("flops_ratio", "the table")):
        ratio = getattr(found, name)
        if ratio is not None:
            lines.append(f"  {ratio:.3f} of {label}")
    if found.shares:
        parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in found.shares.items())
        lines.append(f"  GB a turn: {parts}")
    for kind, flops in sorted(found.by_precision.items(), key=lambda x: -x[1])[:5]:
        lines.append(f"  {kind}: {flops / 1e12:.3g} TFLOP")
    for axis, kinds in found.exchanged.items():
        sent = ", ".join(f"{kind} {count / 1e6:.0f} MB" for kind, count in kinds.items())
        lines.append(f"  on eight, over {axis}: {sent}")
    lines += [f"  NOT ALLOWED {x}" for x in grouped(found.findings)]
    return "\n".join(lines)
