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
from afmrl_jax.runtime.outputs import whole_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import commit
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
    add: bool = False
    """Keep what the JSON file has of other programs, if it is of the same target and JAX."""
    eight: bool = True
    """Also compile for eight devices, for what they exchange."""
    sizes: Sizes = field(default_factory=Sizes)


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Compile, look inside, print, and write `out` after each program.

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
    chosen, known = _chosen(settings)
    parts = _earlier(settings, out)
    wrong: list[str] = []
    for case in chosen:
        try:
            found = inspect(case, aim, settings.keep, eight=settings.eight)
        except RunError as error:
            wrong.append(str(error))
            parts[case.name] = {"part": case.name, "error": str(error)}
            log_info(str(error))
        else:
            wrong += faults(found)
            parts[case.name] = found.record()
            log_info(described(found))
        parts[case.name]["commit"] = commit()
        details = [parts[x] for x in known if x in parts]
        figures = figures_of(details)
        head: JsonObject = {"target": settings.target, "jax": jax.__version__}
        write_record(out, "compiled", figures, [head, *details])
    if wrong:
        raise RunError(f"{len(wrong)} things that a program must not hold:\n" + "\n".join(wrong))
    return figures


def _earlier(settings: Settings, out: Path) -> dict[str, JsonObject]:
    """By name, what `out` says of programs, where that is to be kept.

    Raises:
        ConfigError: it is of another target or JAX.
    """
    found = whole_record(out) if settings.add else {}
    if not found:
        return {}
    head, *details = found["details"]
    now = {"target": settings.target, "jax": jax.__version__}
    if head != now:
        raise ConfigError(
            f"{out} is of {head.get('target')} and JAX {head.get('jax')}; leave --add out, or "
            "choose another --out"
        )
    return {x["part"]: {"commit": found.get("commit"), **x} for x in details}


def _chosen(settings: Settings) -> tuple[list[Case], list[str]]:
    """The programs to compile, and the names of all."""
    known = cases(settings.sizes, settings.target)
    unknown = sorted(set(settings.programs) - {x.name for x in known})
    if unknown:
        raise ConfigError(
            f"no program {', '.join(unknown)}; choose from {', '.join(x.name for x in known)}"
        )
    chosen = [x for x in known if not settings.programs or x.name in settings.programs]
    return chosen, [x.name for x in known]


def figures_of(details: list[JsonObject]) -> dict[str, float]:
    """The numbers that are quoted, by name: of several programs, the worst."""
    agcl = [x for x in details if x["part"].startswith("agcl_")]
    found = {
        "decode_bytes_per_token_ratio": [x.get("bytes_ratio") for x in details],
        "train_flops_ratio": [x.get("flops_ratio") for x in details],
        "agcl_vocab_products": [x.get("vocab_products") for x in agcl],
    }
    told = {name: [float(x) for x in values if x is not None] for name, values in found.items()}
    return {name: max(values) for name, values in told.items() if values}


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
