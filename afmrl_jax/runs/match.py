"""Finds listings of one product in a catalogue, or between two, with a run's embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from afmrl_jax.data.catalogue.load import load_catalogue_of
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.inference.systems import System
from afmrl_jax.matching.calibration import Calibration, Labelled, Method, cross_fitted, fit
from afmrl_jax.matching.candidates import (
    BLOCK,
    Pairs,
    Side,
    candidate_blocks,
    joined,
    pairs_of,
)
from afmrl_jax.matching.clusters import find_clusters
from afmrl_jax.matching.evaluate import Truth, evaluate_matching, labelled_candidates
from afmrl_jax.matching.lists import AttributeTable, Vocabulary
from afmrl_jax.matching.reliability import (
    brier_score,
    calibration_error,
    operating_points,
    reliability_curve,
    threshold_for,
)
from afmrl_jax.retrieval.exact import VECTORS, ExactIndex
from afmrl_jax.retrieval.index_file import IndexFile
from afmrl_jax.retrieval.scann import DATASET
from afmrl_jax.retrieval.types import open_vectors
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runs.embedded import INDEX, EmbeddedListings
from afmrl_jax.runs.evaluate import cached_annotations
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

OWN_PART = "learn"
"""The part of the reward split that RAR trains on, in catalogues that divide it."""


@dataclass(frozen=True)
class MatchSettings:
    """How listings of one product are found."""

    precision: float = 0.95
    """Wanted share of right pairs among the accepted ones, on held-out families."""
    neighbours: int = 20
    """Nearest listings of each that are candidates; more than a product's listings."""
    method: Method = "platt"
    """`platt`: a logistic regression; `isotonic`: any ascending curve, for a thousand held-out
    pairs and more."""
    calibration_split: Literal["reward", "test"] = "reward"
    """Held-out listings of the run's own catalogue that probabilities are learned from."""
    lowest: float = 0.1
    """Pairs of less probability are not written."""
    evaluate: bool = True
    """Measure precision and recall on the run's test split, unless that is the one above."""

    def __post_init__(self) -> None:
        if not 0 < self.precision < 1:
            raise ConfigError(f"precision {self.precision}: give a share between 0 and 1")
        if not 0 < self.lowest < 1:
            raise ConfigError(f"lowest {self.lowest}: give a probability between 0 and 1")
        if self.neighbours < 1:
            raise ConfigError(f"neighbours {self.neighbours}: give one or more")


@dataclass(frozen=True)
class EmbeddedSide:
    """An embedded catalogue to match."""

    catalogue: Catalogue
    side: Side
    index: Index
    listings: EmbeddedListings
    products: Sequence[str] = field(repr=False)
    """Product id of each listing."""

    def text(self, place: int) -> str:
        """The attribute list of a listing; empty if it has none."""
        return str(self.listings[place].get("attributes") or "")


def embed_side(
    run: FinishedRun,
    system: System,
    catalogue: Catalogue,
    folder: Path,
    settings: IndexSettings,
    vocabulary: Vocabulary,
) -> EmbeddedSide:
    """Embed a catalogue, taking over what an earlier call has embedded, and open it.

    Args:
        run: has the embedder, and the generator if it reads lists.
        system: which of them.
        catalogue: its listings.
        folder: where the embedded catalogue is kept.
        settings: of the index.
        vocabulary: of the attribute lists, shared by the sides.
    """
    try:
        embed_catalogue(run, system.name, catalogue, folder, settings=settings, update=True)
    except RunError as error:
        log_info(f"match: {error}; {folder} is written anew")
        embed_catalogue(run, system.name, catalogue, folder, settings=settings)
    about = IndexFile.read(folder / INDEX)
    if about.ids != catalogue.column("listing_id"):
        raise RunError(f"{folder} has other listings than the catalogue; remove it and start again")
    listings = EmbeddedListings(folder, about.ids)
    vectors = open_vectors(
        folder / INDEX / (VECTORS if about.kind == "exact" else DATASET),
        np.dtype(np.float32),
        len(about.ids),
    )
    lists = None
    if system.generator is not None:
        texts = (str(listings[n].get("attributes") or "") for n in range(len(listings)))
        lists = AttributeTable(texts, vocabulary)
    index = Index.load(folder / INDEX, mesh=run.mesh)
    products = catalogue.column("product_id")
    return EmbeddedSide(catalogue, Side(vectors, lists), index, listings, products)


@dataclass(frozen=True)
class Known:
    """Listings of the run's own catalogue whose products are known."""

    split: str
    side: Side
    index: ExactIndex
    truth: Truth

    @classmethod
    def of(cls, run: FinishedRun, system: System, catalogue: Catalogue, split: str) -> Known:
        """The listings of a split, embedded.

        Of a `reward` split with parts, those that RAR has trained on are left out.

        Raises:
            RunError: the split is too small.
        """
        chosen = catalogue.subset(split)
        parts = np.array([x == OWN_PART for x in chosen.column("part")])
        if split == "reward" and parts.any() and not parts.all():
            kept = np.flatnonzero(~parts)
            chosen = Catalogue(catalogue.name, tuple(chosen.listings[int(n)] for n in kept))
        if len(chosen) < 2:
            raise RunError(
                f"the run's {split} split has {len(chosen)} listings; matching needs two"
            )
        texts = None
        if system.generator is not None:
            texts = cached_annotations(run, system.generator, chosen, "both")
        everything = np.arange(len(chosen))
        label = f"match: {split}"
        vectors = run.encoder(system).embed(run.rows(chosen), everything, texts, label=label)
        ids = chosen.column("listing_id")
        lists = None if texts is None else AttributeTable(texts.get(x, "") for x in ids)
        index = ExactIndex(ids, vectors, mesh=run.mesh)
        return cls(split, Side(vectors, lists), index, Truth.of(chosen.listings))

    def candidates(self, k: int) -> Labelled:
        """The nearest pairs, with what is true of them."""
        return labelled_candidates(self.side, self.index, self.truth, k)


@dataclass(frozen=True)
class Judge:
    """A calibration, with the probability from which on pairs are accepted."""

    calibration: Calibration
    threshold: float | None
    """None if no probability has the wanted precision."""
    about: JsonObject
    """How good it is, on families that it was not fitted on."""

    @classmethod
    def of(cls, labelled: Labelled, listings: int, settings: MatchSettings) -> Judge:
        """Fit a calibration for a catalogue of `listings` listings.

        Raises:
            CatalogueError: too few pairs.
        """
        weights = labelled.weights(listings)
        chances = cross_fitted(labelled, listings, settings.method)
        same = labelled.same
        curve = reliability_curve(same, chances, weights)
        threshold = threshold_for(same, chances, weights, settings.precision)
        calibration = fit(labelled, listings, settings.method)
        about = {
            "listings": labelled.listings,
            "candidates": len(same),
            "same": int(same.sum()),
            "true_pairs": labelled.true_pairs,
            "families": len(np.unique(labelled.families)),
            "for_listings": listings,
            "weight_of_strangers": float(weights.max(initial=1.0)),
            "brier": brier_score(same, chances, weights),
            "calibration_error": calibration_error(curve),
            "reliability": curve,
            "operating_points": operating_points(same, chances, weights, labelled.true_pairs),
            "threshold": threshold,
            "model": asdict(calibration),
        }
        return cls(calibration, threshold, about)


@dataclass(frozen=True, eq=False)
class Matches:
    """What was found."""

    pairs: Pairs
    """The likelier first."""
    probability: np.ndarray
    """Of each pair, float64 [n]."""
    accepted: np.ndarray
    """bool [n]"""
    clusters: list[np.ndarray]
    """Places of listings; those of the second catalogue come after all of the first."""


def find_matches(
    one: EmbeddedSide, other: EmbeddedSide, judge: Judge, settings: MatchSettings
) -> Matches:
    """The likely pairs of a catalogue, or of two, and the clusters of the accepted ones.

    Memory is that of the pairs that are kept, and of a block of listings with their neighbours.

    Args:
        one: the catalogue that asks.
        other: the catalogue that is searched, or the same object.
        judge: gives probabilities.
        settings: which pairs.
    """
    size = len(other.side)
    kept = [Pairs(*(np.zeros(0, x) for x in (int, int, *[np.float32] * 3)))]
    blocks = candidate_blocks(one.side, other.side, other.index, settings.neighbours)
    with Progress("match", len(one.side)) as progress:
        for number, block in enumerate(blocks, 1):
            likely = judge.calibration.probability(block) >= settings.lowest
            kept.append(block.take(likely))
            progress.update(min(number * BLOCK, len(one.side)))
    pairs = joined(kept, size)
    chances = judge.calibration.probability(pairs)
    order = np.argsort(-chances, kind="stable")
    pairs, chances = pairs.take(order), chances[order]
    bound = np.inf if judge.threshold is None else judge.threshold
    accepted = chances >= bound
    clusters = _clusters(one, other, pairs.take(accepted), chances[accepted], judge.calibration)
    return Matches(pairs, chances, accepted, clusters)


def _clusters(
    one: EmbeddedSide,
    other: EmbeddedSide,
    pairs: Pairs,
    chances: np.ndarray,
    calibration: Calibration,
) -> list[np.ndarray]:
    first = 0 if one is other else len(one.side)
    sides = (one.side, other.side)

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = np.zeros(len(a))
        for left, mine in enumerate(sides):
            for right, theirs in enumerate(sides):
                chosen = ((a >= first) == bool(left)) & ((b >= first) == bool(right))
                if chosen.any():
                    places = a[chosen] - first * left, b[chosen] - first * right
                    found = pairs_of(mine, places[0], theirs, places[1])
                    out[chosen] = calibration.probability(found)
        return out

    if one is other:
        return find_clusters(
            pairs.left,
            pairs.right,
            chances,
            len(one.side),
            lambda a, b: calibration.probability(pairs_of(one.side, a, one.side, b)),
        )
    size = first + len(other.side)
    return find_clusters(pairs.left, pairs.right + first, chances, size, between)


def pairs_of_products(side: EmbeddedSide, most: int = 50) -> Pairs:
    """Pairs of listings under one product id; of a product of many listings some of the pairs.

    Args:
        side: the catalogue.
        most: listings of a product that are compared with one another.
    """
    _, numbers = np.unique(np.array(side.products), return_inverse=True)
    order = np.argsort(numbers.ravel(), kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers.ravel()[order])) + 1)
    left, right = [np.zeros(0, int)], [np.zeros(0, int)]
    for members in parts:
        one, other = np.triu_indices(min(len(members), most), 1)
        left.append(members[one])
        right.append(members[other])
    return pairs_of(side.side, np.concatenate(left), side.side, np.concatenate(right))


def judged(
    run: FinishedRun, system: System, settings: MatchSettings, listings: int
) -> tuple[Judge, JsonObject | None]:
    """A judge for a catalogue, and how matching does on the run's test split.

    The test split is judged by a calibration of its own size, fitted on the same held-out pairs.

    Args:
        run: with its own catalogue.
        system: whose embedder is used.
        settings: of matching.
        listings: that are searched in the catalogue to match.
    """
    own = load_catalogue_of(run.config)
    held_out = Known.of(run, system, own, settings.calibration_split)
    labelled = held_out.candidates(settings.neighbours)
    judge = Judge.of(labelled, listings, settings)
    if not settings.evaluate or settings.calibration_split == "test":
        return judge, None
    test = Known.of(run, system, own, "test")
    fitting = Judge.of(labelled, len(test.side), settings)
    found = evaluate_matching(
        test.side,
        test.index,
        test.truth,
        fitting.calibration,
        fitting.threshold,
        settings.neighbours,
        resamples=run.config.evaluation.bootstrap,
        seed=run.config.seed,
    )
    return judge, {"catalogue": own.name, "split": "test", "wanted": settings.precision, **found}
