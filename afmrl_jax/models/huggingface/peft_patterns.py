"""The patterns by which a PEFT adapter gives some modules another rank or alpha.

They are regular expressions out of a file that is not trusted, and some expressions take ages to
fail. So only a plain part of the language is read, and of it only what is matched soon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from afmrl_jax.errors import RunError

T = TypeVar("T")

_TOKEN = re.compile(
    r"(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<or>\|)|(?P<anchor>[\^$])"
    r"|(?P<atom>\\[.dwDW_-]|\[\^?[\w.\-\\]+\]|[\w.\-])"
    r"|(?P<many>[*+])|(?P<once>\?)|(?P<times>\{\d{1,2}\})",
    re.ASCII,
)
_LONGEST = 100
"""Characters of a module's name, at most; a pattern with `*` may try as many places."""
_DEEPEST = 8
"""Groups within groups."""
_MOST_STEPS = 5 * 10**7
"""Steps of all patterns on all names, by `_steps`: seconds."""
_REMEDY = "merge it into its model with peft (`merge_and_unload`) and load that"


def matched(patterns: Mapping[str, T], names: Sequence[str], default: T, where: Path) -> list[T]:
    """What is meant for each name: by the first pattern that fits the name or its end.

    Ends begin behind a dot, so that `q_proj` and `layers.0.self_attn.q_proj` both fit
    `model.layers.0.self_attn.q_proj`. As in `peft.utils.other.get_pattern_key`.

    Args:
        patterns: by regular expression, in order.
        names: of modules.
        default: where no pattern fits.
        where: the file, for errors.

    Raises:
        RunError: a pattern is no regular expression of the plain kind, or takes too long.
    """
    longest = max((len(x) for x in names), default=0)
    if patterns and longest > _LONGEST:
        raise RunError(f"{where}: patterns for names of {longest} characters; {_REMEDY}")
    steps = sum(_steps(x, where) for x in patterns) * len(names)
    if steps > _MOST_STEPS:
        raise RunError(f"{where}: its patterns would take too long to match; {_REMEDY}")
    compiled = [(_compiled(x, where), value) for x, value in patterns.items()]
    return [
        next((value for pattern, value in compiled if pattern.match(name)), default)
        for name in names
    ]


def _compiled(pattern: str, where: Path) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as problem:
        raise RunError(f"{where}: pattern {pattern!r}: {problem}; {_REMEDY}") from problem


def _steps(pattern: str, where: Path) -> int:
    """An upper bound, but for a constant, of the ways to match a pattern to a name.

    Raises:
        RunError: it holds more than names, classes, groups, alternatives and repeated characters.
    """
    refused = f"{where}: pattern {pattern[:80]!r} is more than names and wildcards; {_REMEDY}"
    steps, place, depth, before = 1, 0, 0, ""
    alternatives = [1]
    while place < len(pattern):
        found = _TOKEN.match(pattern, place)
        if found is None or steps > _MOST_STEPS:
            raise RunError(refused)
        kind, place = str(found.lastgroup), found.end()
        # A repeated group could match in exponentially many ways.
        repeats = {"many": ("atom",), "times": ("atom",), "once": ("atom", "close")}
        if kind in repeats and before not in repeats[kind]:
            raise RunError(refused)
        depth += {"open": 1, "close": -1}.get(kind, 0)
        if not 0 <= depth <= _DEEPEST:
            raise RunError(refused)
        if kind == "open":
            alternatives.append(1)
        elif kind == "close":
            steps *= alternatives.pop()
        elif kind == "or":
            alternatives[-1] += 1
        steps *= {"many": _LONGEST // 2, "once": 2}.get(kind, 1)
        before = kind
    if depth:
        raise RunError(refused)
    return steps * alternatives[0]
