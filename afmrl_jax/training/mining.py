"""Hard negatives by search: listings that the current embedder takes for another's product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import MiningConfig
from afmrl_jax.data.sources.mined_negatives import MinedTables, NegativeTable
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import identity
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.types import SearchIndex
from afmrl_jax.runtime.distributed import barrier, check_on_first
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.loop import Refresh
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.state import TrainState

BATCH = 128
"""Listings embedded at once; a forward pass alone needs little memory."""
SEARCHED = 4096
"""Listings searched for at once: their neighbours are held, a thousand each and more."""


def positive_scores(vectors: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Mean cosine of each listing with the other listings of its product.

    Args:
        vectors: unit vectors [n d].
        products: int [n], from 0.

    Returns:
        float32 [n], infinite for a listing that stands alone.
    """
    sums = np.zeros((products.max() + 1, vectors.shape[1]))
    np.add.at(sums, products, vectors)
    others = np.bincount(products)[products] - 1
    # Less the listing's cosine with itself.
    total = (vectors * sums[products]).sum(1) - (vectors * vectors).sum(1)
    return np.where(others > 0, total / np.maximum(others, 1), np.inf).astype(np.float32)


def choose_negatives(
    positions: np.ndarray,
    scores: np.ndarray,
    positives: np.ndarray,
    own: np.ndarray,
    products: np.ndarray,
    settings: MiningConfig,
) -> np.ndarray:
    """The hardest neighbours of each listing that may be held against it.

    Left out are listings of the same product, and those that score above the share
    `settings.margin` of the positives' score p: s > p - (1 - margin) |p|, which for p > 0 is
    NV-Retriever's s > margin p. Of the rest the first `skip` are passed over.

    Args:
        positions: int [q m]; numbers of the nearest listings, best first.
        scores: float [q m]; their cosines.
        positives: float [q]; of `positive_scores`.
        own: int [q]; product number of the listings that search.
        products: int [n]; product number of every listing, duplicate groups merged.
        settings: of the mining.

    Returns:
        int32 [q k], k = `settings.hard_negatives`, -1 where there are fewer.

    Reference: Moreira et al., NV-Retriever, arXiv 2407.15831, `TopK-PercPos`.
    """
    allowed = products[positions] != own[:, None]
    if settings.margin is not None:
        # A listing without a positive has an infinite score and no limit.
        slack = (1 - settings.margin) * np.abs(np.where(np.isinf(positives), 0.0, positives))
        allowed &= scores <= (positives - slack)[:, None]
    place = np.cumsum(allowed, axis=1) - 1 - settings.skip
    allowed &= (place >= 0) & (place < settings.hard_negatives)
    out = np.full((len(positions), settings.hard_negatives), -1, np.int32)
    rows, columns = np.nonzero(allowed)
    out[rows, place[rows, columns]] = positions[rows, columns]
    return out


def mine(
    encoder: Encoder,
    builder: RowBuilder,
    products: np.ndarray,
    settings: MiningConfig,
    attributes: Mapping[str, str] | None = None,
    *,
    index: Callable[[Sequence[str], np.ndarray], SearchIndex] = ExactIndex,
) -> np.ndarray:
    """Hard negatives of every listing of `builder`, int32 [n k].

    Args:
        encoder: the embedder as it is now.
        builder: rows of the training listings.
        products: int [n], see `choose_negatives`.
        settings: of the mining.
        attributes: by listing id, where the embedder reads them.
        index: builds the index that is searched.
    """
    everything = np.arange(len(builder.listings))
    vectors = encoder.embed(builder, everything, attributes)
    if not np.isfinite(vectors).all():
        raise RunError(
            "the embedder's vectors are not finite, so no negatives can be mined; lower "
            "--agcl.optimizer.learning-rate"
        )
    searched = index([x.listing_id for x in builder.listings], vectors)
    positives = positive_scores(vectors, products)
    parts = []
    for begin in range(0, len(vectors), SEARCHED):
        own = slice(begin, begin + SEARCHED)
        found = searched.search(vectors[own], settings.depth)
        parts.append(
            choose_negatives(
                found.positions, found.scores, positives[own], products[own], products, settings
            )
        )
    return np.concatenate(parts)


def refresh_of(
    name: str,
    tables: MinedTables,
    trainee: Partition,
    builder: RowBuilder,
    products: np.ndarray,
    settings: MiningConfig,
    attributes: Mapping[str, str] | None,
    mesh: Mesh,
) -> Refresh:
    """The search before each segment of a stage's steps.

    The table of a step is a function of the weights at that step. One that a killed run has left
    is kept if the same weights have written it, so that a resumed run draws the same batches.
    """

    def work(state: TrainState, step: int) -> None:
        # What is frozen is the same all the stage, and the larger part.
        weights = identity(trainee.architecture, state.params)
        path = tables.path(step)
        if check_on_first(lambda: path.is_file() and NegativeTable.load(path).embedder == weights):
            return
        params = trainee.whole(state.params)
        encoder = Encoder.on(mesh, trainee.architecture, params, BATCH)
        places = mine(encoder, builder, products, settings, attributes)
        NegativeTable(places, weights).save(path)
        barrier(f"negatives of step {step} are written")
        full = (places >= 0).all(1).mean()
        log_info(
            f"{name}: hard negatives mined at step {step}; {100 * full:.0f} % of listings have all"
        )

    return Refresh(settings.every, work)
