"""What a variation of AGCL does to the pairs of its batches, by the catalogue's ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import AgclConfig
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.sampler import PairSampler
from afmrl_jax.objectives.agcl_kernels.rules import Criteria, Evidence, Own, Weighting, judge
from afmrl_jax.objectives.bm25 import bm25_scores, fit_bm25

PAIR_FIGURES = {
    "false_negatives": "share of the negatives that are the query's own product under another id",
    "masked_at_end": "share of the negatives that the trained embedder masks",
    "masked_false": "share of these that are false negatives",
    "false_masked": "share of the false negatives that are masked",
    "weight_siblings": "mean weight of family siblings over that of all negatives",
    "weight_false": "mean weight of false negatives over that of all negatives",
}


@dataclass(frozen=True)
class Batch:
    """Listings of the train split that were contrasted in one step; the diagonal is positive."""

    scores: np.ndarray
    """[b b] cosines of the trained embedder."""
    bm25: np.ndarray
    """[b b]"""
    false: np.ndarray
    """[b b], whether the pair is one product under two ids."""
    siblings: np.ndarray
    """[b b], whether the pair is of one family but not of one product."""
    teacher: np.ndarray | None = None
    """[b b] cosines of a frozen embedder, where one masks."""


def has_mask(settings: AgclConfig) -> bool:
    """Whether negatives may be masked by their score."""
    return settings.delta is not None or settings.agreement_rho is not None


def judged(batch: Batch, settings: AgclConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pairs left out of the denominator, bool [b b], and weights [b b], as `agcl_loss` has them.

    Masks are those after the warm-up, weights those before a placebo permutes them and before
    they are divided by their mean.
    """

    def number(value: float | None) -> jax.Array | None:
        return None if value is None else jnp.float32(value)

    def own(table: jax.Array | None) -> jax.Array | None:
        return None if table is None else jnp.diagonal(table)[:, None]

    scores, bm25 = (jnp.asarray(x, jnp.float32) for x in (batch.scores, batch.bm25))
    teacher = None if batch.teacher is None else jnp.asarray(batch.teacher, jnp.float32)
    known = None
    if settings.oracle_mask is not None:
        whole = settings.oracle_mask == "family"
        known = jnp.asarray(batch.false | batch.siblings if whole else batch.false)
    criteria = Criteria(
        gamma=jnp.float32(settings.gamma),
        delta=number(settings.delta),
        agreement_rho=number(settings.agreement_rho),
        agreement_epsilon=number(settings.agreement_epsilon),
        teacher_share=number(settings.teacher_share),
    )
    found = judge(
        Weighting(settings.positive_weight, settings.weighted_pairs),
        criteria,
        Evidence(scores, bm25, bm25, teacher, known),
        Own(jnp.diagonal(scores)[:, None], own(bm25), own(teacher)),
        jnp.eye(len(scores), dtype=bool),
    )
    gone = np.zeros(batch.scores.shape, bool)
    for reason in found.reasons.values():
        gone |= np.asarray(reason)
    assert found.log_weight is not None
    return gone, np.exp(1 + np.asarray(found.log_weight))


def judge_batches(batches: Sequence[Batch], settings: AgclConfig) -> dict[str, float | None]:
    """The figures of `PAIR_FIGURES` over some batches; None if there is nothing to divide by."""
    apart = [~np.eye(len(x.scores), dtype=bool) for x in batches]

    def of(pairs: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([x[keep] for x, keep in zip(pairs, apart, strict=True)])

    found = [judged(x, settings) for x in batches]
    gone, weight = of([x for x, _ in found]), of([x for _, x in found])
    false, siblings = of([x.false for x in batches]), of([x.siblings for x in batches])

    def mean(values: np.ndarray, where: np.ndarray) -> float | None:
        return float(values[where].mean()) if where.any() else None

    everywhere = np.ones_like(gone)
    all_weight = float(weight.mean())
    sibling, twin = mean(weight, siblings), mean(weight, false)
    return {
        "false_negatives": mean(false, everywhere),
        "masked_at_end": mean(gone, everywhere),
        "masked_false": mean(false, gone),
        "false_masked": mean(gone, false),
        "weight_siblings": None if sibling is None else sibling / all_weight,
        "weight_false": None if twin is None else twin / all_weight,
    }


def judge_pairs(
    listings: Sequence[Listing],
    vectors: np.ndarray | None,
    texts: Mapping[str, str],
    settings: AgclConfig,
    *,
    teacher: np.ndarray | None = None,
    max_terms: int,
    seed: int,
) -> dict[str, float | None]:
    """Redraw the batches of a training and judge the pairs with the embedder it trained.

    Args:
        listings: of the train split.
        vectors: [n d], of whole listings by the trained embedder; only a mask needs them.
        texts: attribute text by listing id, as used in the training.
        settings: of the training.
        teacher: [n t], of whole listings by the embedder that masks; only its mask needs them.
        max_terms: terms of a text that count.
        seed: of the training's batches.
    """
    sampler = PairSampler(
        [x.product_id for x in listings],
        [x.family_id for x in listings],
        batch_size=settings.batch_size,
        sibling_share=settings.sibling_share,
        seed=seed,
    )
    written = [texts.get(x.listing_id, "") for x in listings]
    vocabulary = Bm25Vocabulary.fit(written)
    terms = vocabulary.encode(written, max_terms)
    statistics = fit_bm25(terms, vocabulary.size)
    product, group = np.array([[x.true_product, x.group] for x in listings]).T
    if vectors is None:
        if has_mask(settings):
            raise ValueError("a mask depends on scores: give the vectors")
        vectors = np.zeros((len(listings), 1), np.float32)
    batches = []
    for step in range(settings.steps):
        queries, candidates, _ = sampler.draw(step)
        same = product[queries][:, None] == product[candidates][None]
        batches.append(
            Batch(
                vectors[queries] @ vectors[candidates].T,
                np.asarray(bm25_scores(statistics, terms[queries], terms[candidates])),
                same,
                (group[queries][:, None] == group[candidates][None]) & ~same,
                None if teacher is None else teacher[queries] @ teacher[candidates].T,
            )
        )
    return judge_batches(batches, settings)
