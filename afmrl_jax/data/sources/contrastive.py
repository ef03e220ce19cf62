"""Batches of contrastive training, each a function of the catalogue, the seed and its number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from afmrl_jax.config import InputDropout, ViewShares
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.text_format import drop_attributes
from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.augmentation import drop_words
from afmrl_jax.data.batching.chunk_arrays import Chunks
from afmrl_jax.data.batching.chunks import Chunker
from afmrl_jax.data.batching.collate import Row, VLBatch
from afmrl_jax.data.batching.images import erase_patches
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.sources.batches import ContrastiveBatch, Judges
from afmrl_jax.data.sources.mined_negatives import MinedTables, fill_up
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import PairSampler
from afmrl_jax.data.sources.views import PERIOD, Sides, view_of
from afmrl_jax.types import Modality

MOST_SAMPLES, SAMPLE_ROWS = 8, 8192
"""Most batches, and most of their rows, from which the shapes of chunks are chosen; at least two
batches in any case."""
PACKING_SAMPLES = 32
"""Most batches from which the shapes of packed rows are chosen."""


class ContrastiveSource:
    """Batches for AGCL: `rows` (queries, then candidates), product numbers and BM25 term ids.

    If rows hold attributes, `prompt_last` is the index of the last token before them.
    With `mined` tables, k hard negatives per query follow the q candidates: those of query i
    are candidates q + i k to q + (i + 1) k - 1 in `rows` and `candidate_terms`, and
    `candidate_products` holds the product numbers of all c = q + q k candidates.
    `judges` are of all listings; a batch holds those of its own.

    With `chunk_tokens` the rows are `Chunks` of so many positions on each of `shares` devices,
    otherwise with `packed` they are `PackedRows`, in shapes chosen from the first batches; the
    content of a batch is the same.

    With `views`, all queries of a batch show the same and so do all candidates, see `view_of`: a
    negative never differs from the positive by what it shows.

    Batch `i` depends only on (catalogue, seed, `i`, the mined table of its segment), not on the
    number of loader workers or processes.
    """

    def __init__(
        self,
        builder: RowBuilder,
        *,
        steps: int,
        batch_size: int,
        sibling_share: float,
        seed: int,
        attributes_in_input: Lists | None,
        attributes_for_terms: Mapping[str, str] | None,
        vocabulary: Bm25Vocabulary | None,
        dropout: InputDropout,
        chunk_tokens: int | None = None,
        packed: bool = False,
        shares: int = 1,
        category_share: float = 0.0,
        category_batch: int = 16,
        duplicate_share: float = 0.0,
        mask_duplicate_groups: bool = True,
        mined: MinedTables | None = None,
        views: ViewShares | None = None,
        judges: Judges | None = None,
    ):
        listings = builder.listings
        self._builder = builder
        self._steps = steps
        self._seed = seed
        self._sampler = PairSampler(
            [x.product_id for x in listings],
            [x.family_id for x in listings],
            batch_size=batch_size,
            sibling_share=sibling_share,
            seed=seed,
            categories=[x.category for x in listings],
            category_share=category_share,
            category_batch=category_batch,
            duplicate_groups=[x.duplicate_group for x in listings],
            duplicate_share=duplicate_share,
            merge_duplicates=mask_duplicate_groups,
        )
        self._mined = mined
        self._judges = judges
        self._lists = attributes_in_input
        self._views = views or ViewShares()
        self._dropout = dropout
        texts = attributes_for_terms or {}
        width = builder.text.max_terms
        self._terms = (
            np.full((len(listings), 1), -1, np.int32)
            if vocabulary is None
            else vocabulary.encode([texts.get(x.listing_id, "") for x in listings], width)
        )
        self._collate: Callable[[Sequence[Row]], VLBatch | PackedRows | Chunks] = builder.batch
        if chunk_tokens is not None:
            self._collate = Chunker.of(
                self._samples(MOST_SAMPLES),
                builder.tokenizer,
                builder.image,
                builder.text,
                tokens=chunk_tokens,
                shares=shares,
                host=builder.host,
            )
        elif packed:
            self._collate = builder.packer(self._samples(PACKING_SAMPLES), shares)

    def _samples(self, most: int) -> list[list[Row]]:
        """Rows of the first batches, and of the first one of each view."""
        seen = max(2, min(most, SAMPLE_ROWS // (2 * self.batch_size)))
        first = {self.view(step): step for step in reversed(range(PERIOD))}
        # Nothing is mined yet; any other listings are as long.
        steps = sorted({*range(seen), *first.values()})
        return [self._rows(step, *self._drawn(step, None)) for step in steps]

    @property
    def batch_size(self) -> int:
        """Pairs per batch; fewer than requested if the catalogue has fewer products."""
        return self._sampler.batch_size

    @property
    def identity(self) -> np.ndarray:
        """Product number of every listing, int32 [n], as used in batches."""
        return self._sampler.identity

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"ContrastiveSource(listings={len(self._builder.listings)}, seed={self._seed})"

    def view(self, step: int) -> Sides:
        """What the queries of batch `step` show, and what its candidates do."""
        return view_of(step, self._views, self._seed)

    def _row(self, index: int, rng: np.random.Generator, shown: Modality) -> Row:
        drop, builder = self._dropout, self._builder
        listing, attributes, text = builder.listings[index], None, None
        no_list, hidden = rng.random(2)
        if self._lists is not None:
            # Written from no more than what this side shows.
            text = self._lists.draw(listing.listing_id, shown, rng)
        if text and no_list >= drop.whole_list:
            attributes = drop_attributes(text, rng, drop.attributes)
        title = drop_words(listing.title, rng, drop.words)
        stored = () if shown == "text" else builder.picture(index)
        pictures = tuple(erase_patches(x, rng, drop.patches, builder.image) for x in stored)
        titled, pictured = shown != "image", True
        if not self._views.used:
            # With views, it would leave some rows of a side with less than the others show.
            titled = hidden >= drop.title
            pictured = not drop.title <= hidden < drop.title + drop.picture
        return prompts.embedder_row(
            builder.tokenizer,
            builder.text,
            builder.image,
            title=title if titled else None,
            attributes=attributes,
            pictures=pictures if pictured else (),
        )

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the listings of batch `step`: queries int [q], and candidates int [c].

        Candidates after the first q are the hard negatives, query by query.
        """
        return self._drawn(step, self._mined)

    def _drawn(self, step: int, mined: MinedTables | None) -> tuple[np.ndarray, np.ndarray]:
        queries, candidates, _ = self._sampler.draw(step)
        if self._mined is None:
            return queries, candidates
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, step, 3]))
        shape = (len(queries), self._mined.count)
        known = mined[step].places[queries] if mined else np.full(shape, -1, np.int32)
        found = fill_up(known, queries, self.identity, rng)
        return queries, np.concatenate([candidates, found.ravel()])

    def _rows(self, step: int, queries: np.ndarray, candidates: np.ndarray) -> list[Row]:
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, step, 1]))
        sides = zip(self.view(step), (queries, candidates), strict=True)
        return [self._row(int(i), rng, shown) for shown, places in sides for i in places]

    def __getitem__(self, step: int) -> ContrastiveBatch:
        queries, candidates = self.draw(step)
        rows = self._rows(step, queries, candidates)
        last = None
        if self._lists is not None:
            last = np.array([row.bare_last for row in rows], np.int32)
        return ContrastiveBatch(
            rows=self._collate(rows),
            products=self.identity[queries],
            query_terms=self._terms[queries],
            candidate_terms=self._terms[candidates],
            candidate_products=None if self._mined is None else self.identity[candidates],
            prompt_last=last,
            query_judges=None if self._judges is None else self._judges.of(queries),
            candidate_judges=None if self._judges is None else self._judges.of(candidates),
            bad_pictures=self._builder.bad_pictures(np.concatenate([queries, candidates])),
            view="-".join(self.view(step)) if self._views.used else None,
        )
