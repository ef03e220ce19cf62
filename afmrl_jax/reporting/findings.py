"""What a run shows, as one plain sentence a step: from the primary tests, or without any claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afmrl_jax.evaluation.chance import CHANCE
from afmrl_jax.evaluation.primary import METRICS, PRIMARY, verdict
from afmrl_jax.reporting.tables import (
    Evaluation,
    best_baseline,
    cell,
    differences,
    number,
    rows_of,
)
from afmrl_jax.types import JsonObject

SMALL = 2000
"""Listings of a catalogue below which models from random weights seldom learn enough."""
NEAR_ZERO = 5.0
RARE = 1.0
"""Percent of the lists below which a key is not shown: slips of a pen."""
SIGNS = {"gain": "▲", "harm": "▼", "not shown": "○", "mixed": "◇"}


@dataclass(frozen=True)
class Effect:
    """The difference of one metric, in points."""

    metric: str
    difference: float
    low: float
    high: float
    p: float | None
    """Corrected; None if the run was evaluated before there were tests."""
    said: str
    """`gain`, `harm` or `not shown`."""
    before: float | None = None
    after: float | None = None
    ideal: float | None = None
    """What a perfect model could reach, where the catalogue says."""

    @property
    def _digits(self) -> int:
        """Decimals: values near zero, as of text to image, need two."""
        sizes = [abs(x) for x in (self.before, self.after, self.low, self.high) if x is not None]
        return 2 if max(sizes) < NEAR_ZERO else 1

    def _signed(self, value: float) -> str:
        # Adding zero makes -0.0 a plain 0.
        return f"{round(value, self._digits) + 0:+.{self._digits}f}"

    @property
    def text(self) -> str:
        """The difference with its interval."""
        low, high = self._signed(self.low), self._signed(self.high)
        return f"{self._signed(self.difference)} [{low}, {high}]"

    @property
    def sides(self) -> str:
        """The two values, if they are known."""
        if self.before is None or self.after is None:
            return ""
        return f"{self.before:.{self._digits}f} → {self.after:.{self._digits}f}"

    @property
    def p_text(self) -> str:
        """The p-value, or nothing."""
        if self.p is None:
            return ""
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"


@dataclass(frozen=True)
class Comparison:
    """Two systems by every primary metric."""

    before: str
    after: str
    about: str
    effects: tuple[Effect, ...]

    @property
    def said(self) -> str:
        """What its tests say together: `gain`, `harm`, `not shown`, or `mixed`."""
        found = {x.said for x in self.effects} - {"not shown"}
        return found.pop() if len(found) == 1 else "mixed" if found else "not shown"

    @property
    def sign(self) -> str:
        """A mark for it."""
        return SIGNS[self.said]

    @property
    def where(self) -> str:
        """In which metrics an effect is shown, where it is not in all."""
        shown = [x.metric for x in self.effects if x.said != "not shown"]
        others = [x.metric for x in self.effects if x.said == "not shown"]
        if not shown or not others:
            return ""
        return f" in {' and '.join(shown)}, not in {' and '.join(others)}"

    @property
    def chance(self) -> bool:
        """Whether it is a comparison with chance."""
        return self.before == CHANCE


@dataclass(frozen=True)
class Finding:
    """What is true of one step."""

    step: str
    comparisons: tuple[Comparison, ...]
    """The first one decides; empty if the run lacks the step."""

    @property
    def said(self) -> str:
        """`gain`, `harm`, `not shown`, `mixed`, or `missing`."""
        return self.comparisons[0].said if self.comparisons else "missing"

    @property
    def headline(self) -> str:
        """The verdict in words."""
        if not self.comparisons:
            return "not in this run."
        first = self.comparisons[0]
        if first.chance:
            words = {
                "gain": "better than chance",
                "harm": "worse than chance",
                "not shown": "not shown to differ from chance",
                "mixed": "metrics disagree",
            }
        else:
            words = {
                "gain": "a gain is shown",
                "harm": "harmful",
                "not shown": "no effect is shown",
                "mixed": "metrics disagree",
            }
        headline = first.effects[0]
        return f"{words[first.said]}{first.where}: {headline.metric} {headline.text}."


def _known(values: JsonObject, *names: str) -> list[float] | None:
    found = [number(values.get(name)) for name in names]
    return [x for x in found if x is not None] if None not in found else None


def _tested(evaluation: Evaluation) -> list[tuple[str, str, str, str, Effect]]:
    """(step, from, to, about, effect) of every primary test in the evaluation."""
    out = []
    for x in evaluation.get("primary") or []:
        found = _known(x, "difference", "low", "high")
        if found is None:
            continue
        p = number(x.get("p_holm"))
        ideal = ((evaluation.get("ideal") or {}).get(x["task"]) or {}).get(x["metric"])
        difference, low, high = found
        effect = Effect(
            metric=x["metric"],
            difference=difference,
            low=low,
            high=high,
            p=p,
            said=verdict(low, high, 1.0 if p is None else p),
            before=number(x.get("before")),
            after=number(x.get("after")),
            ideal=number(ideal),
        )
        out.append((x["step"], x["from"], x["to"], x.get("about") or "", effect))
    return out


def _untested(evaluation: Evaluation) -> list[tuple[str, str, str, str, Effect]]:
    """The same from the intervals alone, of an evaluation that has no tests."""
    found = {(x.before, x.after, x.task.key, x.metric): x for x in differences(evaluation)}
    out = []
    for test in PRIMARY:
        for metric in METRICS:
            x = found.get((test.before, test.after, test.task, metric))
            if x is not None:
                effect = Effect(
                    metric, x.difference, x.low, x.high, None, verdict(x.low, x.high, 0.0)
                )
                out.append((test.step, test.before, test.after, test.about, effect))
    return out


def findings_of(evaluation: Evaluation | None) -> list[Finding]:
    """One finding for each step of the method; empty if nothing was compared."""
    if not evaluation:
        return []
    lines = _tested(evaluation) or _untested(evaluation)
    if not lines:
        return []
    out = []
    for step in dict.fromkeys([*(x.step for x in PRIMARY), *(x[0] for x in lines)]):
        own = [x for x in lines if x[0] == step]
        pairs = dict.fromkeys(x[1:4] for x in own)
        comparisons = tuple(
            Comparison(*pair, tuple(x[4] for x in own if x[1:4] == pair)) for pair in pairs
        )
        out.append(Finding(step, comparisons))
    return out


def tests_made(evaluation: Evaluation | None) -> int:
    """How many primary tests were corrected together."""
    return len((evaluation or {}).get("primary") or [])


@dataclass(frozen=True)
class Unlearned:
    """A run that knows less than a method without learning."""

    baseline: str
    of_baseline: float
    best: str
    of_best: float
    small: int | None
    """Number of the catalogue's listings, if they are few."""


def unlearned(evaluation: Evaluation | None) -> Unlearned | None:
    """Whether the best row loses against pixels, histogram or BM25 by fine-grained R@1."""
    baseline = best_baseline(evaluation)
    known = [(cell(row, "fine", "R@1").value, row["name"]) for row in rows_of(evaluation)]
    values = [(value, str(name)) for value, name in known if value is not None]
    if baseline is None or not values or max(values)[0] >= baseline[1]:
        return None
    listings = number((evaluation or {}).get("listings"))
    small = int(listings) if listings is not None and listings < SMALL else None
    value, name = max(values)
    return Unlearned(*baseline, name, value, small)


@dataclass(frozen=True)
class KeyShare:
    """How many lists of the test listings have a key, in percent."""

    key: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """In points."""
        return self.after - self.before

    @property
    def word(self) -> str:
        """`came` or `went`, if the share moved by ten points or more."""
        if abs(self.change) < MOVED:
            return ""
        return "came" if self.change > 0 else "went"


MOVED = 10.0
"""Points by which a key's share must move to be called so."""


def key_shares(evaluation: Evaluation | None) -> list[KeyShare]:
    """The keys of the lists before and after RAR, most frequent first, without rare ones."""
    keys = ((evaluation or {}).get("lists") or {}).get("keys") or {}
    before, after = (keys.get(x) or {} for x in ("before", "after"))
    found = [
        KeyShare(key, number(before.get(key)) or 0.0, number(after.get(key)) or 0.0)
        for key in dict.fromkeys([*before, *after])
    ]
    common = [x for x in found if max(x.before, x.after) >= RARE]
    return sorted(common, key=lambda x: (-max(x.before, x.after), x.key))


def moved(shares: Sequence[KeyShare], word: str) -> list[str]:
    """Keys that `came` or `went`."""
    return [x.key for x in shares if x.word == word]
