"""A case of the campaign, the room that it runs in, and what came of it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.errors import AfmrlError

VERDICTS = (
    "clean",
    "vague",
    "ok",
    "accepted",
    "accepted-wrong",
    "refused",
    "foreign",
    "hang",
    "memory",
    "outside",
)
"""An error that names file or record; one that does not; a good input taken; an input taken that
may be good; one taken that is known to be broken; a good one refused; an exception of no kind of
ours; no end in sight; too much memory; something touched outside the case's folder."""
FAILING = ("accepted-wrong", "refused", "foreign", "hang", "memory", "outside")


class AcceptedWrongError(Exception):
    """What is known to be broken was taken for good; the message says what."""


@dataclass(frozen=True)
class Room:
    """Where a case is made and runs."""

    good: Path
    """The good inputs; not to be changed."""
    folder: Path
    """The case's own folder, the current one while it runs."""
    rng: np.random.Generator
    kept: dict[str, Any] = field(default_factory=dict)
    """What a worker keeps from case to case, such as loaded models."""


@dataclass(frozen=True)
class Case:
    """A mutated input, and what is done with it."""

    what: str
    act: Callable[[], object]
    """Raises what the package raises, or `AcceptedWrongError`."""
    wrong: bool = False
    """Known to be broken by construction: it must not be taken."""
    good: bool = False
    """Known to be good by construction: it must be taken."""
    named: str = ""
    """A name of the case's own that an error may call things by, such as a folder's."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    target: str
    number: int
    verdict: str
    what: str = ""
    line: str = ""
    """First line of the error, and where it was raised."""
    seconds: float = 0.0
    peak_mb: int = 0


def verdict_of(case: Case, error: BaseException | None) -> tuple[str, str]:
    """The verdict on a case that ended by itself, and a line about it."""
    if error is None:
        if case.wrong:
            return "accepted-wrong", "taken without an error"
        return ("ok" if case.good else "accepted"), ""
    text = str(error).splitlines() or [""]
    line = f"{type(error).__name__}: {text[0][:300]}"
    if isinstance(error, AcceptedWrongError):
        return "accepted-wrong", text[0][:300]
    if isinstance(error, AfmrlError):
        if case.good:
            return "refused", line
        return ("clean" if names_something(str(error), case.named) else "vague"), line
    return "foreign", f"{line} [{place_of(error)}]"


_NAMED = re.compile(
    r"listing|line \d|items\[|row \d|record|shard|/|\.json|\.npy|https?:|[\w-]+\.[a-z]\w+:"
)


def names_something(message: str, own: str = "") -> bool:
    """Whether a message names a file, a record, or what a case calls its own."""
    return bool(_NAMED.search(message) or (own and re.search(rf"\b{re.escape(own)}\b", message)))


def place_of(error: BaseException) -> str:
    """The innermost line of the package in a trace."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [x for x in frames if "afmrl_jax" in Path(x.filename).parts]
    if not own:
        own = frames[-1:]
    if not own:
        return "nowhere"
    path = Path(own[-1].filename)
    parts = path.parts
    begin = parts.index("afmrl_jax") if "afmrl_jax" in parts else len(parts) - 1
    return f"{'/'.join(parts[begin:])}:{own[-1].lineno} {own[-1].name}"


Target = Callable[[Room], Case]
TARGETS: dict[str, Target] = {}
"""Makes a case of each target."""


def target(name: str) -> Callable[[Target], Target]:
    """Add a target under a name."""

    def add(make: Target) -> Target:
        TARGETS[name] = make
        return make

    return add
