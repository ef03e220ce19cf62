"""Effect of AGCL's weights and masks on the pairs of some batches: arrays in, plain values out.

The loss itself never forms the matrix of all pairs; here it is formed, for people to look at. Rates
equal the metrics of `objectives.agcl.agcl_loss` (a test checks this).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from afmrl_jax.config import AgclConfig
from afmrl_jax.types import JsonObject

REASONS = ("identity", "margin", "agreement")
DELTAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
GAMMAS = (0.0, 0.03, 0.1, 0.3, 1.0)
RHOS = (0.8, 0.9, 0.95, 1.0)
BINS = 16
SATURATED = 0.95
"""Value of tanh from which a larger BM25 score hardly changes a weight."""


@dataclass(frozen=True)
class Masking:
    """The settings of weights and masks; see `AgclConfig`."""

    gamma: float
    delta: float | None
    agreement_rho: float | None
    agreement_epsilon: float
    temperature: float

    @classmethod
    def of(cls, settings: AgclConfig) -> Masking:
        """The settings of a stage."""
        return cls(**{x.name: getattr(settings, x.name) for x in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Pairs:
    """All pairs of some batches except the positive ones, one entry per pair, [n] each."""

    batch: np.ndarray
    query: np.ndarray
    """int; number of the query listing"""
    candidate: np.ndarray
    """int; number of the candidate listing"""
    mined: np.ndarray
    """bool; the candidate is a hard negative"""
    score: np.ndarray
    positive: np.ndarray
    """Score of the query's own candidate"""
    bm25: np.ndarray
    own_bm25: np.ndarray
    """BM25 of the query's own candidate"""
    same: np.ndarray
    """bool; the same product as far as training knows"""
    true: np.ndarray
    """bool; the same product in truth, as far as the catalogue tells"""
    total: np.ndarray
    """Sum of w e^{s / tau} over the query's denominator, less the largest exponent"""
    largest: np.ndarray

    @classmethod
    def of(
        cls,
        step: int,
        queries: np.ndarray,
        candidates: np.ndarray,
        scores: np.ndarray,
        bm25: np.ndarray,
        identity: np.ndarray,
        truth: np.ndarray,
        masking: Masking,
    ) -> Pairs:
        """The pairs of one batch.

        Args:
            step: number of the batch.
            queries: int [q], numbers of listings.
            candidates: int [c], pair i's at place i, then hard negatives.
            scores: [q c], cosines.
            bm25: [q c].
            identity: int [n], product number of every listing as training has it.
            truth: [n], true product of every listing.
            masking: for the denominators.
        """
        count, columns = scores.shape
        rows, places = np.nonzero(~np.eye(count, columns, dtype=bool))
        query, candidate = queries[rows], candidates[places]
        positive, own = np.diagonal(scores), np.diagonal(bm25)
        same = identity[query] == identity[candidate]
        draft = cls(
            batch=np.full(len(rows), step),
            query=query,
            candidate=candidate,
            mined=places >= count,
            score=scores[rows, places],
            positive=positive[rows],
            bm25=bm25[rows, places],
            own_bm25=own[rows],
            same=same,
            true=same | (truth[query] == truth[candidate]),
            total=np.zeros(len(rows)),
            largest=np.zeros(len(rows)),
        )
        logits = scores / masking.temperature + 1.0 + np.tanh(masking.gamma * bm25)
        out = masked(draft, masking)
        logits[rows[out], places[out]] = -np.inf
        largest = logits.max(1)
        total = np.exp(logits - largest[:, None]).sum(1)
        return dataclasses.replace(draft, total=total[rows], largest=largest[rows])

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """The pairs of several batches."""
        names = [x.name for x in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.score)


def reasons(pairs: Pairs, masking: Masking) -> dict[str, np.ndarray]:
    """Which pairs leave the denominator, bool [n] by reason; a pair may have several."""
    margin = agreement = np.zeros(len(pairs), bool)
    if masking.delta is not None:
        margin = pairs.score > pairs.positive + masking.delta
    if masking.agreement_rho is not None:
        agreement = (pairs.bm25 >= masking.agreement_rho * pairs.own_bm25) & (pairs.own_bm25 > 0)
        agreement = agreement & (pairs.score > pairs.positive - masking.agreement_epsilon)
    return {"identity": pairs.same, "margin": margin, "agreement": agreement}


def masked(pairs: Pairs, masking: Masking) -> np.ndarray:
    """Whether each pair leaves the denominator, bool [n]."""
    return np.logical_or.reduce(list(reasons(pairs, masking).values()))


def weights(pairs: Pairs, gamma: float) -> np.ndarray:
    """The weight exp(1 + tanh(gamma B)) of each pair."""
    return np.exp(1.0 + np.tanh(gamma * pairs.bm25))


def _counts(pairs: Pairs, chosen: np.ndarray) -> JsonObject:
    """How many pairs are chosen, and how many of them are false negatives."""
    count, true = int(chosen.sum()), int((chosen & pairs.true).sum())
    unknown = int((pairs.true & ~pairs.same).sum())
    found = int((chosen & pairs.true & ~pairs.same).sum())
    return {
        "pairs": count,
        "share": count / max(len(pairs), 1),
        "false_negatives": true,
        "precision": true / count if count else None,
        "found": found,
        "recall": found / unknown if unknown else None,
    }


def summarise(pairs: Pairs, masking: Masking) -> JsonObject:
    """Rates by reason, the histogram of weights, and what other settings would do."""
    why = reasons(pairs, masking)
    out = masked(pairs, masking)
    weight = weights(pairs, masking.gamma)
    edges = np.exp(np.linspace(1.0, 2.0, BINS + 1))
    left, _ = np.histogram(np.clip(weight[~out], edges[0], edges[-1]), edges)
    removed, _ = np.histogram(np.clip(weight[out], edges[0], edges[-1]), edges)
    # Pairs known by product id are removed anyway; the question is what the other masks find.
    unknown = ~pairs.same
    return {
        "pairs": len(pairs),
        "unknown_false_negatives": int((pairs.true & unknown).sum()),
        "masked": _counts(pairs, out),
        "reasons": {name: _counts(pairs, why[name]) for name in REASONS},
        "left": _counts(pairs, ~out),
        "histogram": {
            "edges": edges.tolist(),
            "left": left.tolist(),
            "masked": removed.tolist(),
        },
        "deltas": _sweep(pairs, masking, "delta", DELTAS, "margin"),
        "rhos": _sweep(pairs, masking, "agreement_rho", RHOS, "agreement"),
        "gammas": [_weighing(pairs, out, g) for g in sorted({*GAMMAS, masking.gamma})],
    }


def _sweep(
    pairs: Pairs, masking: Masking, name: str, values: Sequence[float], reason: str
) -> list[JsonObject]:
    """What one mask by itself removes of the pairs not known to be one product."""
    own = getattr(masking, name)
    rows = []
    for value in sorted({*values, *([] if own is None else [own])}):
        found = reasons(pairs, dataclasses.replace(masking, **{name: value}))[reason]
        rows.append({"value": value, "own": value == own} | _counts(pairs, found & ~pairs.same))
    return rows


def _weighing(pairs: Pairs, out: np.ndarray, gamma: float) -> JsonObject:
    """How much a gamma differentiates the negatives."""
    exponent = np.tanh(gamma * pairs.bm25[~out])
    relative = np.exp(exponent) if len(exponent) else np.ones(1)
    low, middle, high = np.quantile(relative, [0.1, 0.5, 0.9])
    return {
        "value": gamma,
        "tenth": float(low),
        "median": float(middle),
        "ninetieth": float(high),
        "positive": float(np.exp(np.tanh(gamma * pairs.own_bm25)).mean()),
        "saturated": float((exponent > SATURATED).mean()) if len(exponent) else 0.0,
    }


def examples(
    pairs: Pairs, masking: Masking, products: np.ndarray, count: int
) -> dict[str, list[JsonObject]]:
    """The pairs a person should look at, at most one for any two products.

    Args:
        pairs: of the batches.
        masking: the settings.
        products: int [n], product number of every listing.
        count: pairs a list.

    Returns:
        `nearest`: masked by margin or agreement, least above its threshold first; `farthest`:
        most above first; `spared`: left in, least below first; `heaviest`: left in, greatest
        weight first, the higher score where weights are equal.
    """
    why = reasons(pairs, masking)
    out = masked(pairs, masking)
    learned = (why["margin"] | why["agreement"]) & ~pairs.same
    threshold = thresholds(pairs, masking)
    excess = pairs.score - threshold
    weight = weights(pairs, masking.gamma)
    finite = np.isfinite(threshold)
    picked = {
        "nearest": _first(pairs, products, np.lexsort((excess,)), learned, count),
        "farthest": _first(pairs, products, np.lexsort((-excess,)), learned, count),
        "spared": _first(pairs, products, np.lexsort((-excess,)), ~out & finite, count),
        "heaviest": _first(pairs, products, np.lexsort((-pairs.score, -weight)), ~out, count),
    }
    describe = _describer(pairs, masking, why, threshold, weight)
    return {name: [describe(place) for place in places] for name, places in picked.items()}


def thresholds(pairs: Pairs, masking: Masking) -> np.ndarray:
    """Score from which margin or agreement removes each pair, infinite if neither does, [n]."""
    out = np.full(len(pairs), np.inf)
    if masking.delta is not None:
        out = pairs.positive + masking.delta
    if masking.agreement_rho is not None:
        agrees = (pairs.bm25 >= masking.agreement_rho * pairs.own_bm25) & (pairs.own_bm25 > 0)
        lower = np.minimum(out, pairs.positive - masking.agreement_epsilon)
        out = np.where(agrees, lower, out)
    return out


def _first(
    pairs: Pairs, products: np.ndarray, order: np.ndarray, chosen: np.ndarray, count: int
) -> list[int]:
    """The first chosen pairs in an order, no two products twice."""
    seen: set[tuple[int, int]] = set()
    found: list[int] = []
    for place in order[chosen[order]]:
        one, two = sorted((products[pairs.query[place]], products[pairs.candidate[place]]))
        if (one, two) not in seen:
            seen.add((one, two))
            found.append(int(place))
        if len(found) == count:
            break
    return found


def _describer(
    pairs: Pairs,
    masking: Masking,
    why: dict[str, np.ndarray],
    threshold: np.ndarray,
    weight: np.ndarray,
) -> Callable[[int], JsonObject]:
    def describe(place: int) -> JsonObject:
        own = [name for name in REASONS if why[name][place]]
        exponent = pairs.score[place] / masking.temperature + np.log(weight[place])
        share = 0.0 if own else np.exp(exponent - pairs.largest[place]) / pairs.total[place]
        limit = threshold[place]
        return {
            "batch": int(pairs.batch[place]),
            "query": int(pairs.query[place]),
            "candidate": int(pairs.candidate[place]),
            "hard_negative": bool(pairs.mined[place]),
            "score": float(pairs.score[place]),
            "positive_score": float(pairs.positive[place]),
            "threshold": float(limit) if np.isfinite(limit) else None,
            "bm25": float(pairs.bm25[place]),
            "own_bm25": float(pairs.own_bm25[place]),
            "weight": float(weight[place]),
            "denominator_share": float(share),
            "reasons": own,
            "same_product": bool(pairs.true[place]),
        }

    return describe
