"""Two systems on the same queries: differences with their intervals and p-values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.evaluation.per_query import FOLDER, QueryValues, read_query_values
from afmrl_jax.evaluation.statistics import intervals, sign_flip_p_value
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.object_store import working_copy
from afmrl_jax.types import JsonObject

NAMED = 3
"""Most listings named in a message."""


@dataclass(frozen=True)
class _Named:
    per_query: str | None = None


@dataclass(frozen=True)
class Side:
    """One of the two sides."""

    path: Path
    """What the user gave."""
    values: QueryValues


def find_values(path: Path, catalogue: str | None = None) -> Side:
    """The per-query values of a run.

    Args:
        path: a run directory, an `evaluation.json`, or a file of per-query values.
        catalogue: which of a run's evaluations, by catalogue name; by default the one named in
            `evaluation.json`.

    Raises:
        RunError: there are none, or several for that catalogue.
    """
    if path.suffix not in (".json", ".parquet"):
        path = working_copy(path)
    if path.is_file() and path.suffix == ".parquet":
        return Side(path, read_query_values(path))
    if path.is_dir() and catalogue is not None:
        found = [read_query_values(x) for x in sorted((path / FOLDER).glob("per_query-*.parquet"))]
        chosen = [x for x in found if x.catalogue == catalogue]
        if len(chosen) == 1:
            return Side(path, chosen[0])
        known = ", ".join(f"{x.catalogue} ({x.split}, {x.name})" for x in found) or "none"
        what = "several" if chosen else "no"
        raise RunError(
            f"{path} has {what} evaluations of catalogue {catalogue!r}; it has: {known}. Give the "
            "file itself, or evaluate it with `afmrl evaluate`"
        )
    file = path / "evaluation.json" if path.is_dir() else path
    if not file.is_file():
        raise RunError(
            f"{path} is not a run with an evaluation.json; finish the run, or evaluate it"
        )
    name = read_checked(file, _Named, nan=True).per_query
    if name is None:
        raise RunError(
            f"{file} names no per-query values: it was written by an older version; evaluate "
            "the run again"
        )
    return Side(path, read_query_values(file.parent / name))


def _named(ids: set[str]) -> str:
    first = ", ".join(repr(x) for x in sorted(ids)[:NAMED])
    return first + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def check_comparable(one: Side, other: Side) -> None:
    """Reject evaluations of different listings.

    Raises:
        RunError: the listings differ; the message says how.
    """
    a, b = one.values, other.values
    if (a.catalogue, a.fingerprint) == (b.catalogue, b.fingerprint):
        return
    sides = f"{one.path} ({a.catalogue}, {a.split}) and {other.path} ({b.catalogue}, {b.split})"
    only_a, only_b = {*a.listing_ids} - {*b.listing_ids}, {*b.listing_ids} - {*a.listing_ids}
    parts = [
        f"{len(ids)} of {len(values.listing_ids)} listings are in the {name} only: {_named(ids)}"
        for name, ids, values in (("first", only_a, a), ("second", only_b, b))
        if ids
    ]
    if not parts:
        parts = ["the listings have the same ids but different contents"]
    remedy = "evaluate both on one catalogue and split with `afmrl evaluate`"
    raise RunError(f"{sides} were judged on different listings: {'; '.join(parts)}; {remedy}")


def _aligned(values: QueryValues, ids: tuple[str, ...], each: np.ndarray) -> np.ndarray:
    if values.listing_ids == ids:
        return each
    place = {x: n for n, x in enumerate(values.listing_ids)}
    return each[[place[x] for x in ids]]


def compare(
    one: Side,
    other: Side,
    system_one: str | None = None,
    system_other: str | None = None,
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> JsonObject:
    """Every metric that both systems have, on the queries that both answer.

    Args:
        one: before.
        other: after.
        system_one: row of its results table; by default the last one.
        system_other: same for the other side.
        resamples: bootstrap resamples, by families.
        permutations: of the test, if there are too many families to enumerate all.
        seed: of both.

    Returns:
        `a` and `b` (run and system), the listings they were judged on, and `metrics`: by
        `task.metric`, `before`, `after`, `difference`, `low`, `high` in points, `p`, and the
        number of queries.

    Raises:
        RunError: the listings differ, a system is unknown, or no metric is shared.
    """
    check_comparable(one, other)
    name_one, before = one.values.system(system_one, str(one.path))
    name_other, after = other.values.system(system_other, str(other.path))
    ids = one.values.listing_ids
    families = np.array(one.values.families)
    shared = [key for key in before if key in after]
    if not shared:
        raise RunError(f"{name_one} and {name_other} share no metric; evaluate both again")
    matched = {key: _aligned(other.values, ids, after[key]) for key in shared}
    for key in shared:
        if not np.array_equal(np.isfinite(before[key]), np.isfinite(matched[key])):
            raise RunError(
                f"the two have different queries for {key}; evaluate both on one catalogue "
                "with one version of this package"
            )
    differences = {key: matched[key] - before[key] for key in shared}
    found = intervals(differences, families, resamples=resamples, seed=seed)
    metrics = {}
    for key in shared:
        kept = np.isfinite(differences[key])
        if not kept.any():
            continue
        difference, low, high = (round(100 * x, 3) for x in found[key])
        metrics[key] = {
            "before": round(100 * float(before[key][kept].mean()), 3),
            "after": round(100 * float(matched[key][kept].mean()), 3),
            "difference": difference,
            "low": low,
            "high": high,
            "p": sign_flip_p_value(
                differences[key], families, permutations=permutations, seed=seed
            ),
            "n_queries": int(kept.sum()),
        }
    return {
        "a": {"run": str(one.path), "system": name_one},
        "b": {"run": str(other.path), "system": name_other},
        "catalogue": one.values.catalogue,
        "split": one.values.split,
        "n_listings": len(ids),
        "n_families": len(np.unique(families)),
        "resamples": resamples,
        "permutations": permutations,
        "seed": seed,
        "metrics": metrics,
    }
