"""Ranks of the positives of each query in the gallery, block by block in bounded memory.

Nothing is sorted as a whole. First come the best positives of a block of queries, from the few
tiles of the gallery that hold any; then every tile is visited once, to count the negatives at or
above the best positive and to keep the scores of the best negatives. Metrics need only their order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.types import AnyArray, Array, Float

QUERIES = 1024
TILE = 4096
STEP = 128
"""Blocks and tiles are multiples of this, so that matrix products have no ragged edge, where the
same pair of vectors could get a different last digit and a tie would be missed."""
KEPT = 2
"""Tiles of scores that are kept from the search for positives to the count of negatives."""
WORKERS = min(4, os.cpu_count() or 1)
"""Threads: while one selects, the product of another runs."""
CROWD = 8
"""Candidates per query in a tile from which searching the whole tile is cheaper."""


class Ranked(NamedTuple):
    """Input of the metrics; ties count against the query."""

    rank: np.ndarray
    """int64 [q]; of the best positive, from 1; 0 where there is none."""
    hits: np.ndarray
    """bool [q k]; whether each of the first k places holds a positive."""
    positives: np.ndarray
    """int64 [q]; positives in the gallery, without the query's own listing."""
    length: np.ndarray
    """int64 [q]; listings in the gallery, without the query's own."""
    judged: np.ndarray
    """int64 [q]; listings of the query's label, including itself and the other queries."""


class Scorer(Protocol):
    """Scores of any queries and gallery listings, higher is nearer."""

    shape: tuple[int, int]
    """Queries and gallery listings."""

    def block(self, rows: np.ndarray, size: int) -> AnyArray:
        """Some queries, prepared as `size` rows with padding at the end."""
        ...

    def tile(self, block: AnyArray, columns: np.ndarray, size: int) -> np.ndarray:
        """Scores [b m] of a block against some listings, as `size` columns, padding at the end."""
        ...


@jax.jit
def _product(query: Float[Array, "b d"], gallery: Float[Array, "m d"]) -> Float[Array, "b m"]:
    return jnp.dot(query, gallery.T, precision=jax.lax.Precision.HIGHEST)


def _taken(vectors: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    out = np.empty((size, vectors.shape[1]), np.float32)
    # Clipping lets NumPy write into `out` directly; places are in range anyway.
    np.take(vectors, places, axis=0, out=out[: len(places)], mode="clip")
    out[len(places) :] = 0.0
    return out


class VectorScorer:
    """Products of vectors, in float32 on the device."""

    def __init__(self, query: np.ndarray, gallery: np.ndarray):
        self.query = np.asarray(query, np.float32)
        self.gallery = np.asarray(gallery, np.float32)
        self.shape = len(query), len(gallery)

    def block(self, rows: np.ndarray, size: int) -> AnyArray:
        """See `Scorer.block`."""
        return jnp.asarray(_taken(self.query, rows, size))

    def tile(self, block: AnyArray, columns: np.ndarray, size: int) -> np.ndarray:
        """See `Scorer.tile`."""
        return np.asarray(_product(block, _taken(self.gallery, columns, size)))


class _Labels(NamedTuple):
    """One definition of positives, as integer labels."""

    query: np.ndarray
    gallery: np.ndarray

    @classmethod
    def of(cls, query: np.ndarray, gallery: np.ndarray) -> _Labels:
        _, numbers = np.unique(np.concatenate([query, gallery]), return_inverse=True)
        numbers = numbers.astype(np.int32)
        return cls(numbers[: len(query)], numbers[len(query) :])

    def counts(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positives of each query, and all listings of its label, including itself."""
        size = int(max(self.query.max(initial=0), self.gallery.max(initial=0))) + 1
        gallery = np.bincount(self.gallery, minlength=size)
        outside = np.bincount(self.query[own < 0], minlength=size)
        return gallery[self.query] - (own >= 0), (gallery + outside)[self.query]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, descending; minus infinity if there are fewer."""
    if values.shape[1] > k:
        values = np.partition(values, values.shape[1] - k, axis=1)[:, -k:]
    out = np.full((len(values), k), -np.inf, np.float32)
    out[:, : values.shape[1]] = -np.sort(-values, axis=1)
    return out


class _Search:
    """The best positives and negatives so far of a block of queries, by one set of labels."""

    def __init__(self, labels: np.ndarray, k: int):
        self.labels = labels
        self.k = k
        self.positive = np.full((len(labels), k), -np.inf, np.float32)
        self.negative = np.full((len(labels), k), -np.inf, np.float32)
        self.above = np.zeros(len(labels), np.int64)

    def look_for_positives(self, scores: np.ndarray, marks: np.ndarray, own: np.ndarray) -> None:
        """Merge the positives of a tile; `own` [b] is the column of a query's own listing or -1."""
        usable = self.labels[:, None] == marks[None, :]
        rows = np.flatnonzero(own >= 0)
        usable[rows, own[rows]] = False
        found = _largest(np.where(usable, scores, np.float32(-np.inf)), self.k)
        self.positive = _largest(np.concatenate([self.positive, found], axis=1), self.k)

    def count_negatives(self, scores: np.ndarray, marks: np.ndarray, holding: bool) -> None:
        """Count and merge the negatives of a tile, after the positives of all tiles."""
        if holding:
            same = self.labels[:, None] == marks[None, :]
            scores = np.where(same, np.float32(-np.inf), scores)
        self.above += np.count_nonzero(scores >= self.positive[:, :1], axis=1)
        rows, columns = np.divmod(
            np.flatnonzero(scores > self.negative[:, -1:]), max(scores.shape[1], 1)
        )
        if len(rows) > CROWD * len(scores):
            self._merge(np.arange(len(scores)), _largest(scores, self.k))
        elif len(rows):
            counts = np.bincount(rows, minlength=len(scores))
            starts = np.cumsum(counts) - counts
            table = np.full((len(scores), counts.max()), -np.inf, np.float32)
            table[rows, np.arange(len(rows)) - starts[rows]] = scores[rows, columns]
            chosen = np.flatnonzero(counts)
            self._merge(chosen, table[chosen])

    def _merge(self, rows: np.ndarray, found: np.ndarray) -> None:
        both = np.concatenate([self.negative[rows], found], axis=1)
        self.negative[rows] = _largest(both, self.k)

    def ranks(self) -> np.ndarray:
        """Rank of the best positive, 0 if there is none."""
        return np.where(np.isfinite(self.positive[:, 0]), 1 + self.above, 0)

    def hits(self) -> np.ndarray:
        """Which of the first k places hold positives, negatives first among equals."""
        hits = np.zeros(self.positive.shape, bool)
        for place in range(self.k):
            score = self.positive[:, place : place + 1]
            # A count that fills the list means "k or more", and such a place is beyond it anyway.
            rank = place + (self.negative >= score).sum(1)
            rows = np.flatnonzero((rank < self.k) & np.isfinite(score[:, 0]))
            hits[rows, rank[rows]] = True
        return hits


class _Plan(NamedTuple):
    """What all blocks of queries share."""

    scorer: Scorer
    coded: Sequence[_Labels]
    tiles: Sequence[np.ndarray]
    """Places in the gallery, in the order in which labels lie side by side."""
    tile_of: np.ndarray
    column_of: np.ndarray
    own: np.ndarray
    rows: int
    columns: int
    k: int

    def search(self, chosen: np.ndarray) -> list[_Search]:
        """Rank a block of queries against the whole gallery."""
        block = self.scorer.block(chosen, self.rows)
        searches = [_Search(x.query[chosen], self.k) for x in self.coded]
        holding = [
            {
                number
                for number, tile in enumerate(self.tiles)
                if np.isin(x.gallery[tile], x.query[chosen]).any()
            }
            for x in self.coded
        ]

        def scores_of(number: int) -> np.ndarray:
            tile = self.tiles[number]
            return self.scorer.tile(block, tile, self.columns)[: len(chosen), : len(tile)]

        kept: dict[int, np.ndarray] = {}
        own = self.own[chosen]
        for number in sorted(set().union(*holding)):
            scores = scores_of(number)
            here = (own >= 0) & (self.tile_of[own] == number)
            column = np.where(here, self.column_of[own], -1)
            for search, labels, held in zip(searches, self.coded, holding, strict=True):
                if number in held:
                    search.look_for_positives(scores, labels.gallery[self.tiles[number]], column)
            if len(kept) < KEPT:
                kept[number] = scores
        # The nearest negatives are where the positives are: later tiles then add little.
        order = sorted(range(len(self.tiles)), key=lambda n: (n not in kept, n))
        for number in order:
            scores = kept.pop(number) if number in kept else scores_of(number)
            for search, labels, held in zip(searches, self.coded, holding, strict=True):
                marks = labels.gallery[self.tiles[number]]
                search.count_negatives(scores, marks, number in held)
        return searches


def _rounded(count: int, most: int) -> int:
    return min(most, -(-max(count, 1) // STEP) * STEP)


def _checked(
    scorer: Scorer, label_sets: Sequence[tuple[np.ndarray, np.ndarray]], own: np.ndarray | None
) -> np.ndarray:
    queries, listings = scorer.shape
    own = np.full(queries, -1, np.int32) if own is None else np.asarray(own, np.int32)
    if own.shape != (queries,) or (own >= listings).any() or not listings:
        raise ValueError(f"places {own.shape} of {queries} queries in a gallery of {listings}")
    for query, gallery in label_sets:
        if (len(query), len(gallery)) != scorer.shape:
            raise ValueError(f"labels of {len(query)} x {len(gallery)}, scores of {scorer.shape}")
        known = own >= 0
        if not (np.asarray(query)[known] == np.asarray(gallery)[own[known]]).all():
            raise ValueError("a query's own listing has another label in the gallery")
    return own


def rank_gallery(
    scorer: Scorer,
    label_sets: Sequence[tuple[np.ndarray, np.ndarray]],
    k: int,
    own: np.ndarray | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Ranked]:
    """Rank the positives of every query, for several definitions of positives at once.

    The place of a positive is one more than the number of negatives that score at least as high,
    plus the positives before it: ties count against the query. Scores are float32. Beyond inputs
    and results this takes the memory of some tiles of 1024 x 4096 scores.

    Args:
        scorer: scores of q queries and m gallery listings.
        label_sets: labels of the queries [q] and of the gallery [m]; equal ones are positives.
        k: how many first places to look at.
        own: int [q], place of each query's own listing in the gallery, which is excluded; -1 if
            it is not there. None: it never is.
        progress: called with the number of finished queries.

    Returns:
        One `Ranked` for each label set.

    Raises:
        ValueError: labels do not fit the scores, or disagree about a query's own listing.
    """
    queries, listings = scorer.shape
    own = _checked(scorer, label_sets, own)
    coded = [_Labels.of(np.asarray(q), np.asarray(g)) for q, g in label_sets]
    # Listings of one label next to each other: few tiles hold the positives of a block.
    gallery_order = np.lexsort([x.gallery for x in coded])
    query_order = np.lexsort([x.query for x in coded])
    rows, columns = _rounded(queries, QUERIES), _rounded(listings, TILE)
    tiles = [gallery_order[n : n + columns] for n in range(0, listings, columns)]
    tile_of, column_of = np.empty((2, listings), np.int64)
    tile_of[gallery_order], column_of[gallery_order] = np.divmod(np.arange(listings), columns)
    plan = _Plan(scorer, coded, tiles, tile_of, column_of, own, rows, columns, k)
    ranks = np.zeros((len(coded), queries), np.int64)
    hits = np.zeros((len(coded), queries, k), bool)
    blocks = [query_order[n : n + rows] for n in range(0, queries, rows)]
    done = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for chosen, searches in zip(blocks, pool.map(plan.search, blocks), strict=True):
            for place, search in enumerate(searches):
                ranks[place, chosen], hits[place, chosen] = search.ranks(), search.hits()
            done += len(chosen)
            if progress is not None:
                progress(done)
    length = listings - (own >= 0).astype(np.int64)
    counts = [x.counts(own) for x in coded]
    return [
        Ranked(ranks[n], hits[n], positives, length, judged)
        for n, (positives, judged) in enumerate(counts)
    ]


def ranked_lists(
    positions: np.ndarray,
    scores: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    k: int,
    own: np.ndarray,
) -> Ranked:
    """The lists returned by an index, so that the same metrics can be computed from them.

    Args:
        positions: int [q n], places in the gallery, best first; negative ones are not results. n is
            at least k + 1 where a query's own listing may be among them.
        scores: [q n]; among equal ones negatives come first.
        query_labels: [q].
        gallery_labels: [m].
        k: how many first places to look at.
        own: int [q], place of the query's own listing, or -1.

    Returns:
        `rank` is 0 for a query whose list holds no positive.
    """
    coded = _Labels.of(np.asarray(query_labels), np.asarray(gallery_labels))
    usable = (positions >= 0) & (positions != own[:, None])
    same = usable & (coded.gallery[positions] == coded.query[:, None])
    # Own listings and missing results go to the end, where no place counts.
    order = np.lexsort((same, -scores, ~usable), axis=-1)
    listed = np.take_along_axis(same, order, axis=1)
    hits = np.zeros((len(positions), k), bool)
    hits[:, : listed.shape[1]] = listed[:, :k]
    rank = np.where(hits.any(1), 1 + hits.argmax(1), 0)
    positives, judged = coded.counts(own)
    return Ranked(rank, hits, positives, len(coded.gallery) - (own >= 0), judged)
