"""What RAR asks of the embedder: the gallery, the queries, and the reward of attribute texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import DTypeLike

from afmrl_jax.config import RarConfig
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.row_packing import Prompts, pictured
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.data.sources.prompts import PromptCollator
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.shared_prefix import embed_continuations
from afmrl_jax.objectives.ranks import PositiveRanks, rank_positives
from afmrl_jax.objectives.rewards import Outcome, Reward
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.distributed import to_devices, to_host
from afmrl_jax.training.list_grammar import grammar_on, keys_of
from afmrl_jax.training.rar.query_parts import divide_queries, family_of
from afmrl_jax.training.rar.rollout import (
    Rollout,
    WrittenLists,
    encode_images,
    trimmed_length,
)


@partial(jax.jit, static_argnames=("architecture", "size", "every", "negatives"))
def _retrieve(
    architecture: Architecture,
    params: Params,
    *,
    rows: Prompts,
    tails: jax.Array,
    tail_mask: jax.Array,
    visual: VisualFeatures | None,
    gallery: jax.Array,
    positives: jax.Array,
    own: jax.Array,
    size: int,
    every: bool,
    negatives: int,
) -> PositiveRanks:
    """Standings of all samples, leaves [q g ...]: rows are read once, each list after them.

    `every` and `negatives` as in `rank_positives`: without them only the rank of the best positive
    is counted.
    """
    shape = tails.shape[:2]
    model = architecture.bind(params)
    vectors = embed_continuations(model, rows, tails, tail_mask, visual)
    places, own = (jnp.repeat(x, shape[1], axis=0) for x in (positives, own))
    flat = vectors.reshape(-1, vectors.shape[-1])
    found = rank_positives(flat, gallery, places, own, size=size, every=every, negatives=negatives)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)


@partial(jax.jit, static_argnames=("size", "every", "negatives"))
def _stand_at(
    vectors: jax.Array,
    *,
    gallery: jax.Array,
    positives: jax.Array,
    own: jax.Array,
    size: int,
    every: bool,
    negatives: int,
) -> PositiveRanks:
    """Standings of query vectors [q d], leaves [q ...]; see `_retrieve`."""
    return rank_positives(
        vectors, gallery, positives, own, size=size, every=every, negatives=negatives
    )


class RarEnvironment:
    """Frozen embedder over a gallery; queries are listings of the `reward` split.

    The gallery holds the listings of `gallery_splits`, embedded with the attributes that the
    generator wrote from which RAR starts, and lies in parts on the devices of the mesh. A query's
    own listing never counts.

    Args:
        builder: rows of the listings of `gallery_splits`.
        encoder: the embedder, on its mesh.
        attributes: by listing id.
        settings: of the stage.
        seed: of the run.
        vocab_size: rows of the generator's token table, for a grammar; None: as many as there
            are token ids.
        packed: whether prompts may share bins; see `RunConfig.packed`.
        annotation_grammar: what the generator keeps to where it annotates; None for nothing.
        writer: the generator's rows of the same listings, for one that reads otherwise; None:
            `builder`.
    """

    def __init__(
        self,
        builder: RowBuilder,
        encoder: Encoder,
        attributes: Mapping[str, str],
        settings: RarConfig,
        seed: int,
        *,
        vocab_size: int | None = None,
        packed: bool = False,
        annotation_grammar: Grammar | None = None,
        writer: RowBuilder | None = None,
    ):
        self.builder = builder
        self.writer = builder if writer is None else writer
        """Rows of the generator."""
        self.mesh = encoder.mesh or make_mesh(1, 1)
        self._encoder = encoder
        listings = builder.listings
        self._of_product: dict[str, list[int]] = {}
        for number, listing in enumerate(listings):
            self._of_product.setdefault(listing.product_id, []).append(number)
        queries = np.array(
            [
                i
                for i, x in enumerate(listings)
                if x.split == "reward" and len(self._of_product[x.product_id]) > 1
            ],
            np.int64,
        )
        self._most = max((len(self._same(int(i))) for i in queries), default=1)
        self.families = np.array([family_of(x) for x in listings])
        parts = divide_queries(listings, queries, settings, seed)
        self.training_queries, self.held_out_queries, self.report_queries = parts
        self.prompts, self._rows = self._collators(queries, settings.queries, seed, packed)
        """What makes batches of the generator's prompts."""
        self._strangers: np.ndarray | None = None
        self._dtype = settings.gallery_dtype
        self.gallery = self.embedded(attributes)
        """Vectors on the devices; another of `embedded` may take its place."""
        self.size = len(listings)
        """Vectors in the gallery, without the zeros behind them."""
        asked = np.concatenate(parts)
        self._bare_row = {int(listing): row for row, listing in enumerate(asked)}
        self._bare = encoder.embed(builder, asked, label="queries without lists")
        self.annotation_grammar = annotation_grammar
        self.grammar = self._grammar(attributes, vocab_size) if settings.constrained else None
        """Tables on the devices, or None for free sampling."""

    def _collators(
        self, queries: np.ndarray, batch_size: int, seed: int, packed: bool
    ) -> tuple[PromptCollator, PromptCollator]:
        """Of the generator's prompts, and of the rows that the embedder reads before a list."""
        reader, writer = self.builder, self.writer
        shuffled = np.random.default_rng([seed, 6]).permutation(queries)
        make = partial(PromptCollator.of, packed=packed, shares=self.mesh.shape[AXES[0]])
        written = [len(writer.prompt(int(i)).tokens) for i in shuffled]
        read = [len(reader.embedder(int(i), None).tokens) for i in shuffled]
        return make(writer, written, batch_size), make(reader, read, batch_size)

    def _same(self, listing: int) -> list[int]:
        """Places of the listings of the same product, the listing itself included."""
        return self._of_product[self.builder.listings[listing].product_id]

    def embedded(self, attributes: Mapping[str, str]) -> jax.Array:
        """A gallery whose listings have these attributes, by listing id."""
        places = np.arange(len(self.builder.listings))
        vectors = self._encoder.embed(self.builder, places, attributes, label="reward gallery")
        if self._strangers is not None:
            vectors = np.concatenate([vectors, self._strangers.astype(vectors.dtype)])
        return self._placed(vectors, self._dtype)

    def _placed(self, vectors: np.ndarray, dtype: DTypeLike) -> jax.Array:
        """The gallery over all devices; rows of zeros make the parts equal."""
        devices = math.prod(self.mesh.shape.values())
        padded = np.pad(vectors, ((0, -len(vectors) % devices), (0, 0)))
        spread = NamedSharding(self.mesh, PartitionSpec(AXES))
        return to_devices(padded.astype(jnp.dtype(dtype)), spread)

    def fill_up(self, vectors: np.ndarray | jax.Array) -> None:
        """Let vectors [m d] that belong to no listing stand in the gallery as further negatives."""
        own = to_host(self.gallery)[: self.size]
        self._strangers = np.asarray(vectors)
        whole = np.concatenate([own, self._strangers.astype(own.dtype)])
        self.gallery = self._placed(whole, own.dtype)
        self.size = len(whole)

    def _grammar(self, attributes: Mapping[str, str], vocab_size: int | None) -> Grammar:
        """Of the keys in the attributes that the distilled generator wrote."""
        builder = self.writer
        budget = builder.text.max_attribute_tokens
        keys = keys_of(attributes.values())
        return grammar_on(self.mesh, keys, builder.tokenizer, budget, vocab_size)

    def judge(
        self,
        prompts: Prompts,
        index: np.ndarray,
        written: WrittenLists,
        reward: Reward,
        settings: RarConfig,
        k: int,
        greedy: WrittenLists | None = None,
    ) -> Rollout:
        """Reward the lists of a batch of queries.

        Args:
            prompts: the generator's prompts, whose pictures the embedder looks at too, q rows.
            index: the queries' listings, [q].
            written: their lists, [q g].
            reward: what the lists earn; only what it needs is computed.
            settings: of the margin and of malformed lists.
            k: of Recall@k.
            greedy: one further list of each query, [q 1], whose reward is found too.
        """
        whole = written if greedy is None else written.beside(greedy)
        found = self.stand(prompts, index, whole.texts, *self._needed(reward, settings))
        outcome = self._outcome(index, whole, found, k)
        penalty = settings.malformed_reward
        rollout = Rollout.of(outcome, whole.malformed, whole.texts, reward, penalty)
        if greedy is not None:
            size = written.malformed.shape[1]
            rollout = rollout.first(size, greedy=rollout.rewards[:, size])
        bare = self.bare_rewards(index, reward, settings, k)
        return replace(rollout, listings=np.asarray(index, np.int32), bare=bare)

    def _needed(self, reward: Reward, settings: RarConfig) -> tuple[int, bool]:
        """Negatives of the margin, and whether every positive is ranked."""
        return settings.margin_negatives if "margin" in reward.needs else 0, "ranks" in reward.needs

    def _outcome(
        self, index: np.ndarray, written: WrittenLists, found: PositiveRanks, k: int
    ) -> Outcome:
        return Outcome(
            rank=found.rank,
            ranks=found.ranks,
            positives=np.array([len(self._same(int(i))) - 1 for i in index], np.int32),
            margin=found.margin,
            tokens=written.tokens,
            attributes=written.attributes,
            budget=self.builder.text.max_attribute_tokens,
            k=k,
        )

    def bare_rewards(
        self, index: np.ndarray, reward: Reward, settings: RarConfig, k: int
    ) -> np.ndarray:
        """What each query earns without any list, float32 [q]."""
        negatives, every = self._needed(reward, settings)
        vectors = self._bare[[self._bare_row[int(i)] for i in index]]
        with jax.set_mesh(self.mesh):
            found = _stand_at(
                vectors,
                gallery=self.gallery,
                positives=self._positives(index),
                own=np.asarray(index, np.int32),
                size=self.size,
                every=every,
                negatives=negatives,
            )
        found = jax.tree.map(lambda x: x[:, None], to_host(found))
        # Nothing is written but the end.
        shape = len(index), 1
        none = WrittenLists([""] * len(index), np.zeros(shape, bool), np.ones(shape, np.int32))
        values = np.asarray(reward(self._outcome(index, none, found, k)), np.float32)
        return values[:, 0]

    def _positives(self, index: np.ndarray) -> np.ndarray:
        """Places of the listings of each query's product, int32 [q p], -1 behind them."""
        places = np.full((len(index), self._most), -1, np.int32)
        for row, listing in zip(places, index, strict=True):
            same = self._same(int(listing))
            row[: len(same)] = same
        return places

    def stand(
        self,
        prompts: Prompts,
        index: np.ndarray,
        texts: Sequence[str],
        negatives: int,
        every: bool = False,
    ) -> PositiveRanks:
        """Where query texts bring the positives, NumPy arrays [q g ...].

        Picture and title are read once a query, and each of its texts after them; the product
        with the gallery is counted and not kept.

        Args:
            prompts: q rows with the queries' pictures.
            index: the queries' listings, [q].
            texts: g attribute texts a query, q * g in order.
            negatives: hardest negatives in the margin; 0 for no margin.
            every: rank every positive, and not only the best.
        """
        builder, index = self.builder, np.asarray(index)
        rows = [builder.embedder(int(i), None) for i in index]
        # The embedder looks at the picture of the prompt, wherever it was packed, if both models
        # cut it alike.
        shared = builder.image == self.writer.image
        batch = (
            self._rows.seeing(rows, to_host(pictured(prompts).visual_start))
            if shared
            else self._rows(rows)
        )
        tails, mask = self._tails(texts, len(index))
        architecture, params = self._encoder.architecture, self._encoder.params
        with jax.set_mesh(self.mesh):
            placed = place_batch(batch, self.mesh)
            found = _retrieve(
                architecture,
                params,
                rows=placed,
                tails=tails,
                tail_mask=mask,
                visual=encode_images(architecture, params, prompts if shared else placed),
                gallery=self.gallery,
                positives=self._positives(index),
                own=index.astype(np.int32),
                size=self.size,
                every=every,
                negatives=negatives,
            )
        return to_host(found)

    def _tails(self, texts: Sequence[str], queries: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of attribute texts as the embedder reads them, int32 and bool [q g n]."""
        budget, tokenizer = self.builder.text.max_attribute_tokens, self.builder.tokenizer
        told = [
            [*tokenizer.encode(text)[:budget], tokenizer.eos_id] if text else [] for text in texts
        ]
        mask = np.arange(budget + 1) < np.array([len(x) for x in told])[:, None]
        tokens = np.full(mask.shape, tokenizer.pad_id, np.int32)
        tokens[mask] = [token for row in told for token in row]
        length = trimmed_length(mask)
        shape = (queries, -1, length)
        return tokens[:, :length].reshape(shape), mask[:, :length].reshape(shape)
