"""The command `afmrl match`: what it writes, and what it reads back of a person's decisions."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from afmrl_jax.data.catalogue.joined import JoinedCatalogue
from afmrl_jax.data.catalogue.manifest import MANIFEST
from afmrl_jax.data.catalogue.readers import RowSource
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import IndexSettings
from afmrl_jax.matching.candidates import Pairs, pairs_of
from afmrl_jax.matching.lists import Vocabulary
from afmrl_jax.reporting.matches import ReviewedPair, ReviewList, ReviewSide, write_review
from afmrl_jax.runs.decisions import (
    Decision,
    Labels,
    kept_rows,
    read_decisions,
    write_labelled,
)
from afmrl_jax.runs.embedded import embedded_files
from afmrl_jax.runs.match import (
    EmbeddedSide,
    Judge,
    Matches,
    MatchSettings,
    embed_side,
    find_matches,
    judged,
    pairs_of_products,
)
from afmrl_jax.runtime.files import atomic_path, write_json
from afmrl_jax.runtime.outputs import only_writer, require_own_output, whole_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.types import JsonObject

COMMAND = "afmrl match"
ABOUT, PAIRS, CLUSTERS = "match.json", "pairs.csv", "clusters.csv"
REVIEW, PAGE = "review.csv", "review.html"
LABELLED = "labelled"
SIDES = ("catalogue", "against")
PAIR_COLUMNS = (
    "left_id", "right_id", "probability", "accepted", "cosine", "agree", "differ",
    "left_product", "right_product",
)  # fmt: skip
REVIEW_COLUMNS = ("number", "left_id", "right_id", "probability", "decision", "list")
LISTS = {
    "new": (
        "Accepted, under two product ids",
        "What would be merged; the least likely first, where mistakes are.",
    ),
    "unclear": (
        "Not accepted, but near",
        "What is left out at the wanted precision; the likeliest first.",
    ),
    "doubtful": (
        "One product id, but not alike",
        "Listings that may have been put under the wrong product; the least likely first.",
    ),
}
"""Lists of the page: title and what they are for."""


@dataclass(frozen=True)
class Inputs:
    """What is matched."""

    catalogue: Catalogue
    against: Catalogue | None = None
    """The catalogue that is searched; None for duplicates within the first."""
    sources: tuple[RowSource, ...] = ()
    """Of the catalogues, where they are to be written with other product ids."""


def match_files(folder: Path) -> set[str] | None:
    """What `afmrl match` wrote in a folder, by name; None if the folder is no output of it."""
    if whole_record(folder / ABOUT).get("command") != COMMAND:
        return None
    found = {ABOUT, PAIRS, CLUSTERS, REVIEW, PAGE}
    for name in SIDES:
        found |= {f"{name}/{x}" for x in embedded_files(folder / name) or ()}
        found |= {f"{name}.attributes.jsonl", f".{name}.lock", f".{name}.attributes.jsonl.lock"}
    if (folder / LABELLED / MANIFEST).is_file():
        store = (folder / LABELLED).iterdir()
        found |= {f"{LABELLED}/{x.name}" for x in store}
    # What a killed call has left.
    unfinished = (f".{LABELLED}.partial/", *(f".{x}.vectors/" for x in SIDES))
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.startswith(unfinished) or name.endswith(".partial"):
            found.add(name)
    return found


def match(
    run: FinishedRun,
    system_name: str | None,
    given: Inputs,
    out: Path,
    settings: MatchSettings,
    *,
    index: IndexSettings | None = None,
    decisions: Path | None = None,
    shown: int = 40,
) -> JsonObject:
    """Find pairs of one product, and write a folder about them.

    `pairs.csv` has the likely pairs, `clusters.csv` the listings of each cluster, `review.csv` and
    `review.html` the pairs that a person should look at, and `match.json` the calibration and the
    measures. Embedded catalogues stay in the folder, so that the next call embeds what is new. With
    decisions, `labelled` is the catalogue, and the other one behind it, with product ids by them.

    Args:
        run: has the embedder.
        system_name: row of the results table; None for the last.
        given: catalogues.
        out: the folder; the output of an earlier call is replaced, nothing else is.
        settings: of matching.
        index: which index is searched; None for the exact one.
        decisions: `review.csv` as a person filled it in.
        shown: pairs of each list to review.

    Returns:
        The contents of `match.json`.

    Raises:
        ConfigError: `out` holds something else, or decisions that would be lost.
        CatalogueError: too few held-out pairs, or a listing cannot be used.
        AfmrlError: a decision cannot be used.
    """
    require_own_output(out, COMMAND, folder=match_files)
    decided = _decisions(out, decisions)
    with only_writer(out, COMMAND):
        out.mkdir(parents=True, exist_ok=True)
        system = run.system(system_name)
        about: JsonObject = {"command": COMMAND, "finished": False}
        write_json(out / ABOUT, about)  # Says whose the folder is, should this call be killed.
        vocabulary, how = Vocabulary(), index or IndexSettings()
        one = embed_side(run, system, given.catalogue, out / SIDES[0], how, vocabulary)
        other = one
        if given.against is not None:
            other = embed_side(run, system, given.against, out / SIDES[1], how, vocabulary)
        judge, test = judged(run, system, settings, len(other.side))
        if judge.threshold is None:
            log_info(
                f"match: no probability reaches a precision of {settings.precision} on the "
                "held-out listings, so no pair is accepted; lower --precision"
            )
        found = find_matches(one, other, judge, settings)
        _write_csv(out / PAIRS, PAIR_COLUMNS, _pair_rows(one, other, found))
        _write_csv(out / CLUSTERS, ("cluster", "catalogue", "listing_id", "product_id"),
                   _cluster_rows(one, other, found))  # fmt: skip
        lists = _review_lists(one, other, found, judge, settings, shown)
        _write_review(out, one, other, lists, decided, judge, settings)
        about |= {
            "finished": True,
            "run": run.folder.name,
            "system": system.name,
            "catalogue": given.catalogue.name,
            "against": None if given.against is None else given.against.name,
            "settings": asdict(settings),
            "calibration": judge.about,
            "test": test,
            "found": _summary(one, other, found),
        }
        if decided and given.sources:
            sides = [one] if other is one else [one, other]
            whole = JoinedCatalogue(tuple(x.catalogue for x in sides))
            labels = Labels(whole, decided, lambda a, b: _likeness(sides, judge, a, b))
            write_labelled(given.sources, whole, labels, out / LABELLED)
            about["decisions"] = {"pairs": len(decided), **labels.changed}
        write_json(out / ABOUT, about | provenance())
    return about


def _likeness(
    sides: Sequence[EmbeddedSide], judge: Judge, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Of listings of one product: two catalogues have none in common before a decision."""
    out, begin = np.zeros(len(a)), 0
    for x in sides:
        own = (a >= begin) & (a < begin + len(x.side))
        pairs = pairs_of(x.side, a[own] - begin, x.side, b[own] - begin)
        out[own] = judge.calibration.probability(pairs)
        begin += len(x.side)
    return out


def _decisions(out: Path, path: Path | None) -> list[Decision]:
    """The decisions that were given; refuses to lose those of an earlier review."""
    there = out / REVIEW
    if path is not None:
        return read_decisions(path)
    if there.is_file() and read_decisions(there):
        raise ConfigError(
            f"{there} has decisions, which would be lost; give them with --decisions {there}, "
            "or move the file elsewhere"
        )
    return []


def _pair_rows(one: EmbeddedSide, other: EmbeddedSide, found: Matches) -> Iterator[list[object]]:
    ids, theirs = one.index.ids, other.index.ids
    for n, (left, right, cosine, agree, differ) in enumerate(zip(*found.pairs, strict=True)):
        yield [
            ids[left],
            theirs[right],
            f"{found.probability[n]:.4f}",
            "yes" if found.accepted[n] else "no",
            f"{cosine:.4f}",
            int(agree),
            int(differ),
            one.products[left],
            other.products[right],
        ]


def _cluster_rows(one: EmbeddedSide, other: EmbeddedSide, found: Matches) -> Iterator[list[object]]:
    first = len(one.side)
    for number, members in enumerate(found.clusters, 1):
        for place in members.tolist():
            mine = place < first
            side, n = (one, place) if mine else (other, place - first)
            yield [number, SIDES[not mine], side.index.ids[n], side.products[n]]


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        out.writerows(rows)


def _summary(one: EmbeddedSide, other: EmbeddedSide, found: Matches) -> JsonObject:
    ours, theirs = (np.array(x.products, object) for x in (one, other))
    pairs, accepted = found.pairs, found.accepted
    known = (
        ours[pairs.left] == theirs[pairs.right] if one is other else np.zeros(len(accepted), bool)
    )
    return {
        "listings": len(one.side),
        "searched": len(other.side),
        "pairs": len(accepted),
        "accepted": int(accepted.sum()),
        "accepted_new": int((accepted & ~known).sum()),
        "expected_precision": float(found.probability[accepted].mean()) if accepted.any() else None,
        "clusters": len(found.clusters),
        "listings_in_clusters": sum(map(len, found.clusters)),
    }


def _review_lists(
    one: EmbeddedSide,
    other: EmbeddedSide,
    found: Matches,
    judge: Judge,
    settings: MatchSettings,
    shown: int,
) -> dict[str, tuple[Pairs, np.ndarray]]:
    """The pairs to look at, with their probabilities, by list."""
    ours, theirs = (np.array(x.products, object) for x in (one, other))
    apart = np.ones(len(found.accepted), bool)
    if one is other:
        apart = ours[found.pairs.left] != theirs[found.pairs.right]
    # Pairs come likeliest first.
    new = np.flatnonzero(apart & found.accepted)[::-1][:shown]
    unclear = np.flatnonzero(apart & ~found.accepted)[:shown]
    lists = {
        name: (found.pairs.take(x), found.probability[x])
        for name, x in (("new", new), ("unclear", unclear))
    }
    if one is other:
        pairs = pairs_of_products(one)
        chances = judge.calibration.probability(pairs)
        # Half or more is no doubt; a product that looks different from each side is normal.
        chosen = np.argsort(chances, kind="stable")[:shown]
        chosen = chosen[chances[chosen] < settings.lowest]
        lists["doubtful"] = pairs.take(chosen), chances[chosen]
    return lists


def _write_review(
    out: Path,
    one: EmbeddedSide,
    other: EmbeddedSide,
    lists: dict[str, tuple[Pairs, np.ndarray]],
    decided: Sequence[Decision],
    judge: Judge,
    settings: MatchSettings,
) -> None:
    rows, parts, number = list[JsonObject](), [], 0
    for name, (pairs, chances) in lists.items():
        cards = []
        for left, right, cosine, chance in zip(
            pairs.left.tolist(), pairs.right.tolist(), pairs.cosine, chances, strict=True
        ):
            number += 1
            sides = _review_side(one, left), _review_side(other, right)
            cards.append(ReviewedPair(number, float(chance), float(cosine), *sides))
            rows.append(
                {
                    "number": number,
                    "left_id": sides[0].listing_id,
                    "right_id": sides[1].listing_id,
                    "probability": f"{chance:.4f}",
                    "list": name,
                }
            )
        parts.append(ReviewList(name, *LISTS[name], tuple(cards)))
    kept = kept_rows(rows, decided, REVIEW_COLUMNS, ordered=one is not other)
    _write_csv(out / REVIEW, REVIEW_COLUMNS, kept)
    names = one.catalogue.name, None if one is other else other.catalogue.name
    write_review(out / PAGE, names, parts, judge.about, settings.precision)


def _review_side(side: EmbeddedSide, place: int) -> ReviewSide:
    listing = side.catalogue.listings[place]
    try:
        picture = base64.b64encode(listing.read_image_bytes()).decode()
    except CatalogueError:  # The page says that there is none; embedding has seen it a moment ago.
        picture = ""
    return ReviewSide(
        listing.title, listing.listing_id, listing.product_id, picture, side.text(place)
    )
