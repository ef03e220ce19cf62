"""What RAR asks of the embedder: the gallery, the queries, and the reward of attribute texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import DTypeLike

from afmrl_jax.config import RarConfig
from afmrl_jax.data.attributes.text_format import parse_attributes
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.row_packing import Prompts, pictured
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.data.sources.prompts import PromptCollator
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import Generation
from afmrl_jax.models.shared_prefix import embed_continuations
from afmrl_jax.objectives.ranks import PositiveRanks, rank_positives
from afmrl_jax.objectives.rewards import Outcome, Reward
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.distributed import to_devices, to_host
from afmrl_jax.training.annotate import completion_texts
from afmrl_jax.training.list_grammar import grammar_on, keys_of
from afmrl_jax.training.rar.rollout import Rollout, encode_images, trimmed_length


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


LEARN, CHOOSE = "learn", "choose"
"""Parts of the reward split that RAR trains on, and that choose its best step."""


class RarEnvironment:
    """Frozen embedder over a fixed gallery; queries are listings of the `reward` split.

    The gallery holds the listings of `gallery_splits`, embedded once with the attributes that the
    distilled generator wrote, and lies in parts on the devices of the mesh. A query's own listing
    never counts.

    Args:
        builder: rows of the listings of `gallery_splits`.
        encoder: the embedder, on its mesh.
        attributes: by listing id.
        settings: of the stage.
        seed: of the run.
        vocab_size: rows of the generator's token table, for a grammar; None: as many as there
            are token ids.
        packed: whether prompts may share bins; see `RunConfig.packed`.
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
    ):
        self.builder = builder
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
        self.families = np.array([x.family_id or x.product_id for x in listings])
        self.training_queries, self.held_out_queries = self._divide(queries, settings, seed)
        self.prompts, self._rows = self._collators(queries, settings.queries, seed, packed)
        """What makes batches of the generator's prompts."""
        vectors = encoder.embed(
            builder, np.arange(len(listings)), attributes, label="reward gallery"
        )
        self.gallery = self._placed(vectors, settings.gallery_dtype)
        self.size = len(listings)
        """Vectors in the gallery, without the zeros behind them."""
        self.grammar = self._grammar(attributes, vocab_size) if settings.constrained else None
        """Tables on the devices, or None for free sampling."""

    def _collators(
        self, queries: np.ndarray, batch_size: int, seed: int, packed: bool
    ) -> tuple[PromptCollator, PromptCollator]:
        """Of the generator's prompts, and of the rows that the embedder reads before a list."""
        builder, shares = self.builder, self.mesh.shape[AXES[0]]
        shuffled = np.random.default_rng([seed, 6]).permutation(queries)
        lengths = (
            [len(row(int(i)).tokens) for i in shuffled]
            for row in (builder.prompt, lambda i: builder.embedder(i, None))
        )
        prompts, rows = (
            PromptCollator.of(builder, x, batch_size, packed=packed, shares=shares) for x in lengths
        )
        return prompts, rows

    def _same(self, listing: int) -> list[int]:
        """Places of the listings of the same product, the listing itself included."""
        return self._of_product[self.builder.listings[listing].product_id]

    def _placed(self, vectors: np.ndarray, dtype: DTypeLike) -> jax.Array:
        """The gallery over all devices; rows of zeros make the parts equal."""
        devices = math.prod(self.mesh.shape.values())
        padded = np.pad(vectors, ((0, -len(vectors) % devices), (0, 0)))
        spread = NamedSharding(self.mesh, PartitionSpec(AXES))
        return to_devices(padded.astype(jnp.dtype(dtype)), spread)

    def fill_up(self, vectors: np.ndarray | jax.Array) -> None:
        """Let vectors [m d] that belong to no listing stand in the gallery as further negatives."""
        own = to_host(self.gallery)[: self.size]
        whole = np.concatenate([own, np.asarray(vectors).astype(own.dtype)])
        self.gallery = self._placed(whole, own.dtype)
        self.size = len(whole)

    def _grammar(self, attributes: Mapping[str, str], vocab_size: int | None) -> Grammar:
        """Of the keys in the attributes that the distilled generator wrote."""
        builder = self.builder
        budget = builder.text.max_attribute_tokens
        keys = keys_of(attributes.values())
        return grammar_on(self.mesh, keys, builder.tokenizer, budget, vocab_size)

    def _divide(
        self, queries: np.ndarray, settings: RarConfig, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out queries, disjoint by family.

        A catalogue may say which is which by the `part` of its reward listings. Those that are
        neither `learn` nor `choose` are left for whoever judges the method.
        """
        parts = np.array([self.builder.listings[int(i)].part or "" for i in queries])
        named = tuple(queries[parts == x] for x in (LEARN, CHOOSE))
        if all(map(len, named)):
            return named[0], named[1]
        families = sorted(set(self.families[queries].tolist()))
        if len(families) < 2:
            raise CatalogueError(
                f"rar needs reward queries of two families or more, found {len(families)}; give "
                "the `reward` split more products with at least two listings each"
            )
        order = np.random.default_rng([seed, 5]).permutation(len(families))
        size = min(max(1, round(settings.held_out_share * len(families))), len(families) - 1)
        held = np.isin(self.families[queries], [families[i] for i in order[:size]])
        return queries[~held], queries[held]

    def judge(
        self,
        prompts: Prompts,
        index: np.ndarray,
        generation: Generation,
        reward: Reward,
        settings: RarConfig,
        k: int,
    ) -> Rollout:
        """Reward the samples of a batch of queries.

        Args:
            prompts: the generator's prompts, whose pictures the embedder looks at too, q rows.
            index: the queries' listings, [q].
            generation: the samples, [q g n].
            reward: what the samples earn; only what it needs is computed.
            settings: of the margin and of malformed lists.
            k: of Recall@k.
        """
        generation = to_host(generation)
        texts, malformed = completion_texts(generation, self.builder.tokenizer)
        shape = generation.finished.shape
        found = self.stand(
            prompts,
            index,
            texts,
            settings.margin_negatives if "margin" in reward.needs else 0,
            every="ranks" in reward.needs,
        )
        counts = [
            0 if bad else len(parse_attributes(t)) for t, bad in zip(texts, malformed, strict=True)
        ]
        outcome = Outcome(
            rank=found.rank,
            ranks=found.ranks,
            positives=np.array([len(self._same(int(i))) - 1 for i in index], np.int32),
            margin=found.margin,
            tokens=generation.mask.sum(-1).astype(np.int32),
            attributes=np.array(counts, np.int32).reshape(shape),
            budget=generation.tokens.shape[-1],
            k=k,
        )
        return Rollout.of(
            outcome, malformed.reshape(shape), texts, reward, settings.malformed_reward
        )

    def stand(
        self,
        prompts: Prompts,
        index: np.ndarray,
        texts: Sequence[str],
        negatives: int,
        *,
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
        # The embedder looks at the picture of the prompt, wherever it was packed.
        batch = self._rows.seeing(rows, to_host(pictured(prompts).visual_start))
        tails, mask = self._tails(texts, len(index))
        places = np.full((len(index), self._most), -1, np.int32)
        for row, listing in zip(places, index, strict=True):
            same = self._same(int(listing))
            row[: len(same)] = same
        architecture, params = self._encoder.architecture, self._encoder.params
        with jax.set_mesh(self.mesh):
            found = _retrieve(
                architecture,
                params,
                rows=place_batch(batch, self.mesh),
                tails=tails,
                tail_mask=mask,
                visual=encode_images(architecture, params, prompts),
                gallery=self.gallery,
                positives=places,
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
