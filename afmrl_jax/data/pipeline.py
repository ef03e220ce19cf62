"""Grain input pipelines: batch number `i` is a pure function of the catalogue, the seed and `i`.

That makes the iterator's state a step count, resuming exact, and the batches the same for any
number of workers. No JAX here: Grain's worker processes import this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from afmrl_jax.config import InputDropout, TextBudget
from afmrl_jax.data import batches, prompts
from afmrl_jax.data.attributes import drop_attributes
from afmrl_jax.data.batches import PatchStore, Row
from afmrl_jax.data.hosts import HostShare
from afmrl_jax.data.images import erase_patches
from afmrl_jax.data.negatives import MinedTables, fill_up
from afmrl_jax.data.records import Listing
from afmrl_jax.data.sampler import PairSampler, epoch_indices
from afmrl_jax.data.terms import Bm25Vocabulary
from afmrl_jax.data.text import Tokenizer, drop_words, open_keys, swap_words, word_pool
from afmrl_jax.model_config import ImageConfig


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """What turns listings into rows: tokenizer, shapes and the pictures of one list of listings."""

    listings: Sequence[Listing]
    tokenizer: Tokenizer
    image: ImageConfig
    text: TextBudget
    pictures: PatchStore

    @classmethod
    def of(
        cls, listings: Sequence[Listing], tokenizer: Tokenizer, image: ImageConfig, text: TextBudget
    ) -> RowBuilder:
        """A builder with an empty picture store."""
        return cls(listings, tokenizer, image, text, PatchStore(listings, image))

    def embedder(
        self, index: int, attributes: str | None, *, title: bool = True, picture: bool = True
    ) -> Row:
        """Embedder row of listing `index`."""
        return prompts.embedder_row(
            self.tokenizer,
            self.text,
            self.image,
            title=self.listings[index].title if title else None,
            attributes=attributes,
            pictures=(self.pictures[index],) if picture else (),
        )

    def prompt(self, index: int, title: str | None = None) -> Row:
        """Generator prompt of listing `index`, under another title where one is given."""
        return prompts.generator_prompt(
            self.tokenizer,
            self.text,
            self.image,
            title=self.listings[index].title if title is None else title,
            pictures=(self.pictures[index],),
        )

    def batch(
        self,
        rows: Sequence[Row],
        length: int | None = None,
        *,
        with_patches: bool = True,
        side: Literal["right", "left"] = "right",
    ) -> batches.VLBatch:
        """Rows padded to the smallest bucket, or to `length`; see `collate`."""
        if length is None:
            length = batches.bucket_length(max(len(row.tokens) for row in rows), self.text)
        return batches.collate(
            rows, self.tokenizer, self.image, length, with_patches=with_patches, side=side
        )


class ContrastiveSource:
    """Batches for AGCL: `rows` (queries, then candidates), product numbers and BM25 term ids.

    Where rows hold attributes, `prompt_last` says which token ends what stands before them.

    With `mined` tables, k hard negatives a query follow behind the q candidates: those of query i
    are candidates q + i k to q + (i + 1) k - 1 in `rows` and `candidate_terms`, and
    `candidate_products` holds the product numbers of all c = q + q k candidates.

    Batch `i` depends on (catalogue, seed, `i`, the mined table of its segment) alone: neither on
    the number of loader workers nor on the number of hosts.
    """

    def __init__(
        self,
        builder: RowBuilder,
        *,
        steps: int,
        batch_size: int,
        sibling_share: float,
        seed: int,
        attributes_in_input: Mapping[str, str] | None,
        attributes_for_terms: Mapping[str, str] | None,
        vocabulary: Bm25Vocabulary | None,
        dropout: InputDropout,
        category_share: float = 0.0,
        category_batch: int = 16,
        duplicate_share: float = 0.0,
        mask_duplicate_groups: bool = True,
        mined: MinedTables | None = None,
        host: HostShare | None = None,
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
        self._host = host or HostShare()
        self._attributes = attributes_in_input
        self._dropout = dropout
        texts = attributes_for_terms or {}
        width = builder.text.max_terms
        self._terms = (
            np.full((len(listings), 1), -1, np.int32)
            if vocabulary is None
            else vocabulary.encode([texts.get(x.listing_id, "") for x in listings], width)
        )

    @property
    def batch_size(self) -> int:
        """Pairs a batch; fewer than asked for where the catalogue has fewer products."""
        return self._sampler.batch_size

    @property
    def identity(self) -> np.ndarray:
        """Product number of every listing, int32 [n], as batches have it."""
        return self._sampler.identity

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"ContrastiveSource(listings={len(self._builder.listings)}, seed={self._seed})"

    def _row(self, index: int, rng: np.random.Generator) -> Row:
        drop, builder = self._dropout, self._builder
        listing, attributes = builder.listings[index], None
        no_list, hidden = rng.random(2)
        text = self._attributes.get(listing.listing_id) if self._attributes is not None else None
        if text and no_list >= drop.whole_list:
            attributes = drop_attributes(text, rng, drop.attributes)
        title = drop_words(listing.title, rng, drop.words)
        picture = erase_patches(builder.pictures[index], rng, drop.patches, builder.image)
        blind = drop.title <= hidden < drop.title + drop.picture
        return prompts.embedder_row(
            builder.tokenizer,
            builder.text,
            builder.image,
            title=title if hidden >= drop.title else None,
            attributes=attributes,
            pictures=() if blind else (picture,),
        )

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the listings of batch `step`: queries int [q], and candidates int [c].

        Candidates behind the first q are the hard negatives, query by query.
        """
        queries, candidates, _ = self._sampler.draw(step)
        if self._mined is None:
            return queries, candidates
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, step, 3]))
        found = fill_up(self._mined[step].places[queries], queries, self.identity, rng)
        return queries, np.concatenate([candidates, found.ravel()])

    def __getitem__(self, step: int) -> dict[str, Any]:
        queries, candidates = self.draw(step)
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, step, 1]))
        rows = [self._row(int(i), rng) for i in np.concatenate([queries, candidates])]
        batch = {
            "rows": self._builder.batch(rows),
            "products": self.identity[queries],
            "query_terms": self._terms[queries],
            "candidate_terms": self._terms[candidates],
        }
        if self._mined is not None:
            batch["candidate_products"] = self.identity[candidates]
        if self._attributes is not None:
            batch["prompt_last"] = np.array([row.bare_last for row in rows], np.int32)
        return self._host.of(batch)


class DistillSource:
    """Teacher-forced rows for G: prompt, then the oracle's list; loss on the list alone.

    The first half of a batch walks through the listings epoch by epoch, the second half holds for
    each of them another listing of its product, where there is one. In `swap_share`
    of the rows the words that title and list have in common are replaced in both.
    """

    def __init__(
        self,
        builder: RowBuilder,
        oracle: Sequence[str],
        *,
        steps: int,
        batch_size: int,
        seed: int,
        structure_weight: float = 1.0,
        swap_share: float = 0.0,
    ):
        self._builder = builder
        self._oracle = oracle
        self._steps = steps
        self._pairs = max(1, min(batch_size, len(oracle)) // 2)
        self._seed = seed
        self._structure_weight = structure_weight
        self._swap_share = swap_share
        self._words = word_pool([x.title for x in builder.listings])
        self._open_keys = open_keys(oracle)
        names = sorted({x.product_id for x in builder.listings})
        number = {name: n for n, name in enumerate(names)}
        self._products = np.array([number[x.product_id] for x in builder.listings], np.int32)
        order = np.argsort(self._products, kind="stable")
        self._of_product = np.split(order, np.cumsum(np.bincount(self._products))[:-1])

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"DistillSource(listings={len(self._oracle)}, seed={self._seed})"

    def _partner(self, place: int, rng: np.random.Generator) -> int:
        others = self._of_product[self._products[place]]
        others = others[others != place]
        return int(rng.choice(others)) if len(others) else place

    def __getitem__(self, step: int) -> dict[str, Any]:
        builder, rng = self._builder, np.random.default_rng([self._seed, step, 2])
        first = epoch_indices(len(self._oracle), self._pairs, step, self._seed)
        places = [int(p) for p in first] + [self._partner(int(p), rng) for p in first]
        rows, starts, weights = [], [], []
        for place in places:
            title, text = builder.listings[place].title, self._oracle[place]
            if rng.random() < self._swap_share:
                title, text = swap_words(
                    title, text, keys=self._open_keys, pool=self._words, rng=rng
                )
            prompt = builder.prompt(place, title)
            wanted = prompts.completion_tokens(builder.tokenizer, text, builder.text)
            weights.append(prompts.value_weights(builder.tokenizer, wanted, self._structure_weight))
            starts.append(len(prompt.tokens))
            rows.append(Row(prompt.tokens + wanted, prompt.pictures))
        batch = builder.batch(rows)
        weight = np.zeros(batch.tokens.shape, np.float32)
        for number, (start, values) in enumerate(zip(starts, weights, strict=True)):
            # Position i predicts token i + 1, so everything moves one to the left.
            weight[number, start - 1 : start - 1 + len(values)] = values
        return {
            "rows": batch,
            "targets": np.roll(batch.tokens, -1, axis=1),
            "weights": weight,
            "prompt_last": np.array(starts, np.int32) - 1,
            "products": self._products[first],
        }


class PromptSource:
    """Prompts of RAR's queries: generator prompts and the positions of their listings."""

    def __init__(
        self,
        builder: RowBuilder,
        queries: np.ndarray,
        *,
        length: int,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        self._builder = builder
        self._queries = queries
        self._length = length
        self._steps = steps
        self._batch_size = min(batch_size, len(queries))
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"PromptSource(queries={len(self._queries)}, seed={self._seed})"

    def __getitem__(self, step: int) -> dict[str, Any]:
        chosen = epoch_indices(len(self._queries), self._batch_size, step, self._seed)
        index = self._queries[chosen]
        rows = [self._builder.prompt(int(i)) for i in index]
        return {"rows": self._builder.batch(rows, self._length), "index": index.astype(np.int32)}


def iterate(source: Any, *, workers: int = 0, end: int | None = None) -> Any:
    """A Grain iterator over `source`, in order, reading ahead in threads or worker processes.

    Its state is saved and restored with the training state (`grain.checkpoint`).

    Args:
        source: random-access batches.
        workers: processes that read; 0 reads in a thread of this one.
        end: no batch from this number on is read, not even ahead; the state of one iterator fits
            another with a later `end`, unless it has been asked for one more than it had.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags.
    drawn = grain.MapDataset.source(source)
    if end is not None:
        drawn = drawn.slice(slice(end))
    dataset = drawn.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)
