"""The stages of a run directory: time, inputs, outputs, size of the models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afmrl_jax.errors import RunError
from afmrl_jax.models.huggingface.safetensors import stored_tensors
from afmrl_jax.reporting.records import REMEDY, read_record
from afmrl_jax.reporting.tables import number
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.training.run_directory import BEGUN, DONE, Done
from afmrl_jax.types import JsonObject

ORDER = (
    "tokenizer",
    "backbone",
    "infonce",
    "distill",
    "annotate-distilled",
    "agcl",
    "agcl-distilled",
    "agcl-shuffled",
    "rar",
    "evaluate",
)
CYCLE = ("rar", "annotate-reinforced", "cit", "cit-control")
"""What a cycle may hold, in order; from its number on the first two have it in their name."""
SHOWN_DIGITS = 12
"""Hexadecimal digits of a hash, enough to distinguish the files of one run."""


@dataclass(frozen=True)
class Stage:
    """One link of the chain."""

    name: str
    state: str
    """`done`, `not finished` or `not run`."""
    seconds: float | None = None
    made_from: tuple[str, ...] = ()
    """Stages whose outputs this one read."""
    outputs: tuple[tuple[str, str], ...] = ()
    """(file, first digits of its SHA-256)."""


def _rank(name: str) -> tuple[int, int, int, str]:
    found = re.fullmatch(r"(.+?)(?:-(\d+))?", name)
    if found and found[1] in CYCLE:
        return ORDER.index("rar"), int(found[2] or 1), CYCLE.index(found[1]), name
    return ORDER.index(name) if name in ORDER else len(ORDER), 0, 0, name


def expected_stages(config: JsonObject) -> list[str]:
    """The stages of the whole method under a run's settings."""
    cit, controls = config.get("cit") or {}, bool(config.get("controls"))
    backbone = (config.get("backbone") or {}).get("steps", 0) > 0
    made = {"backbone": backbone, "agcl-shuffled": controls}
    names = [x for x in ORDER if made.get(x, True)] + ["annotate-reinforced"]
    for cycle in range(1, cit.get("cycles", 1) + 1):
        names += [f"cit-{cycle}"] + [f"cit-control-{cycle}"] * controls
        if cit.get("rar_between") and cycle > 1:
            names += [f"rar-{cycle}", f"annotate-reinforced-{cycle}"]
    return sorted(names, key=_rank)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)


def read_timings(run: Path) -> dict[str, float]:
    """The numbers of `timings.json`, if a run has one: seconds by stage, and other figures."""
    path = run / "timings.json"
    found = read_record(path, dict[str, Any]) or {}
    numbers = {str(name): number(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def read_stages(run: Path, config: JsonObject) -> list[Stage]:
    """Every stage that a run has or should have, in the order of the method.

    Args:
        run: the run directory.
        config: its `config.json`; an empty one means the defaults.
    """
    records = (path for path in run.glob(f"*/{DONE}") if path.is_file())
    done = {path.parent.name: read_checked(path, Done, remedy=REMEDY) for path in records}
    begun = {path.parent.name for path in run.glob(f"*/{BEGUN}")}
    timings = read_timings(run)
    makers = {digest: name for name, found in done.items() for digest in found.outputs.values()}
    out = []
    for name in sorted({*expected_stages(config), *done, *begun}, key=_rank):
        if name not in done:
            state = "not finished" if name in begun else "not run"
            out.append(Stage(name, state, timings.get(name)))
            continue
        found = done[name]
        read = {makers[x] for x in _strings(found.inputs) if x in makers} - {name}
        outputs = tuple((file, digest[:SHOWN_DIGITS]) for file, digest in found.outputs.items())
        made_from = tuple(sorted(read, key=_rank))
        out.append(Stage(name, "done", found.seconds, made_from, outputs))
    return out


def parameter_count(run: Path, stage: str) -> int | None:
    """Parameters that a stage has written (for an adapter only its own); None if there are none."""
    files = sorted((run / stage / "model").glob("*.safetensors"))
    if not files:
        return None
    try:
        stored = [tensor for path in files for tensor in stored_tensors(path).values()]
    except RunError as error:
        raise RunError(f"{error}; or delete {run / stage} to run that stage again") from error
    return sum(math.prod(tensor.shape) for tensor in stored)
