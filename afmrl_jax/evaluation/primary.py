"""The primary tests: what a run or a study may claim, corrected together.

An evaluation has hundreds of differences, and of a hundred true zeros five lie outside their 95 %
interval. So only the comparisons of one list, fixed here, are claims; the others are description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from afmrl_jax.evaluation.chance import CHANCE
from afmrl_jax.evaluation.statistics import crossed, holm, intervals, sign_flip_p_value
from afmrl_jax.evaluation.tasks import PerQuery
from afmrl_jax.types import JsonObject

LAST = ""
"""Stands for the last row of the table, the whole method."""
METRICS = ("R@1", "MRR")
"""Each comparison is tested by both: the first is the headline, the second the less noisy one."""
LEVEL = 0.05


@dataclass(frozen=True)
class PrimaryTest:
    """Two systems, and the task by which they are compared."""

    step: str
    """The part of the method that is judged."""
    before: str
    """Row of the table, or `CHANCE`."""
    after: str
    """Row of the table, or `LAST`."""
    task: str = "fine"
    about: str = ""
    """What the two differ in."""


PRIMARY = (
    PrimaryTest(
        "attributes", "agcl", "agcl+distilled", about="with the distilled generator's lists"
    ),
    PrimaryTest(
        "attributes", "agcl+shuffled", "agcl+distilled", about="against lists of other products"
    ),
    PrimaryTest(
        "attributes", "agcl+distilled-bare", "agcl+distilled",
        about="against the same embedder without lists",
    ),
    PrimaryTest("AGCL", "infonce", "agcl", about="against InfoNCE"),
    PrimaryTest("RAR", "agcl+distilled", "afmrl", about="reinforced lists against distilled ones"),
    PrimaryTest("CIT", "afmrl", "afmrl+cit", about="against the embedder before it"),
    PrimaryTest(
        "CIT", "afmrl+cit-old-lists", "afmrl+cit", about="against as many steps with the old lists"
    ),
    PrimaryTest("text to image", CHANCE, LAST, "text_to_image", "against chance"),
)  # fmt: skip
"""All that is claimed. A comparison whose systems a run lacks is not made, and does not count."""


def _made(
    systems: Mapping[str, PerQuery], tests: Sequence[PrimaryTest]
) -> list[tuple[PrimaryTest, str, str, str]]:
    """The tests that some systems allow: with the two systems and the `task.metric`."""
    rows = [name for name in systems if name != CHANCE]
    out = []
    for test in tests:
        before, after = test.before, test.after or (rows[-1] if rows else "")
        for key in (f"{test.task}.{metric}" for metric in METRICS):
            if all(key in systems.get(name, {}) for name in (before, after)):
                out.append((test, before, after, key))
    return out


def _about(test: PrimaryTest, before: str, after: str, key: str) -> JsonObject:
    task, metric = key.split(".", 1)
    about = {"step": test.step, "about": test.about, "from": before, "to": after}
    return about | {"task": task, "metric": metric}


def _corrected(found: list[JsonObject]) -> list[JsonObject]:
    """The tests with their p-values by Holm, and what they say."""
    out = []
    for x, p in zip(found, holm([x["p"] for x in found]), strict=True):
        out.append(x | {"p_holm": round(p, 6), "verdict": verdict(x["low"], x["high"], p)})
    return out


def verdict(low: float, high: float, p_holm: float) -> str:
    """`gain`, `harm` or `not shown`: the interval excludes zero, and so does the corrected test.

    Args:
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p_holm: corrected p-value.

    Example:
        >>> verdict(0.2, 1.4, 0.21)
        'not shown'
    """
    if not p_holm < LEVEL:
        return "not shown"
    return "gain" if low > 0 else "harm" if high < 0 else "not shown"


def _points(value: float) -> float:
    return round(100 * value, 3)


def primary_results(
    systems: Mapping[str, PerQuery],
    families: np.ndarray,
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
    tests: Sequence[PrimaryTest] = PRIMARY,
) -> list[JsonObject]:
    """The primary tests of one run: for other families, not for other seeds.

    Args:
        systems: per-query values of each row, and of `CHANCE`.
        families: [n], of the listings.
        resamples: of the bootstrap by families.
        permutations: of the sign flips by families.
        seed: of both.
        tests: those that are made.

    Returns:
        For each comparison and metric its systems, `before`, `after`, `difference`, `low` and
        `high` in points, `p`, `p_holm`, `verdict` and the numbers of queries and families.
    """
    found = []
    for test, before, after, key in _made(systems, tests):
        one, other = systems[before][key], systems[after][key]
        kept = np.isfinite(other - one)
        if not kept.any():
            continue
        difference, low, high = intervals(
            {key: other - one}, families, resamples=resamples, seed=seed
        )[key]
        p = sign_flip_p_value(other - one, families, permutations=permutations, seed=seed)
        found.append(
            _about(test, before, after, key)
            | {"before": _points(one[kept].mean()), "after": _points(other[kept].mean())}
            | {"difference": _points(difference), "low": _points(low), "high": _points(high)}
            | {"p": p, "n_queries": int(kept.sum()), "n_families": len(np.unique(families[kept]))}
        )
    return _corrected(found)


def primary_over_seeds(
    runs: Sequence[Mapping[str, PerQuery]],
    families: np.ndarray,
    *,
    tests: Sequence[PrimaryTest] = PRIMARY,
) -> list[JsonObject]:
    """The primary tests of several seeds, for other families and other seeds; see `crossed`.

    Args:
        runs: of each seed, the per-query values of its systems on the same listings.
        families: [n], of the listings.
        tests: those that are made.

    Returns:
        As `primary_results`, with `error`, the standard error, and `seeds`, the difference of each.
    """
    found = []
    for test, before, after, key in _made(runs[0], tests):
        both = [(x[before][key], x[after][key]) for x in runs]
        values = np.stack([other - one for one, other in both])
        kept = np.isfinite(values).all(0)
        if not kept.any():
            continue
        result = crossed(values, families)
        found.append(
            _about(test, before, after, key)
            | {"before": _points(np.mean([one[kept].mean() for one, _ in both]))}
            | {"after": _points(np.mean([other[kept].mean() for _, other in both]))}
            | {"difference": _points(result.mean)}
            | {"low": _points(result.low), "high": _points(result.high)}
            | {"error": _points(result.error), "p": result.p}
            | {"seeds": [_points(x) for x in values[:, kept].mean(1)]}
            | {"n_queries": int(kept.sum()), "n_families": len(np.unique(families[kept]))}
        )
    return _corrected(found)
