"""What RAR asks of R: the gallery, the queries, and the reward of attribute texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.data.attributes import parse_attributes
from afmrl_jax.data.batches import bucket_length
from afmrl_jax.data.pipeline import RowBuilder
from afmrl_jax.data.prompts import embedder_row
from afmrl_jax.errors import CatalogueError
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.functional import Architecture, Params
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.objectives import rewards as objectives
from afmrl_jax.retrieval.encode import Encoder
from afmrl_jax.training.annotate import completion_texts


@dataclass(frozen=True)
class Rollout:
    """Rewards of a group of samples for each query, all [q g]."""

    rewards: np.ndarray
    recall: np.ndarray
    ranks: np.ndarray
    margins: np.ndarray
    malformed: np.ndarray
    attribute_counts: np.ndarray
    token_counts: np.ndarray
    texts: list[str]

    def rewarded(self, settings: RarConfig, k: int) -> Rollout:
        """The same samples under Recall@k, or under the reward that the settings choose."""
        ranks = jnp.asarray(self.ranks)
        recall = objectives.recall_reward(ranks, k)
        chosen = {
            "recall": recall,
            "reciprocal_rank": objectives.reciprocal_rank_reward(ranks),
            "margin": jnp.asarray(self.margins),
        }[settings.reward]
        malformed = jnp.asarray(self.malformed)
        rewards = objectives.apply_malformed(chosen, malformed, settings.malformed_reward)
        kept = np.where(self.malformed, 0.0, np.asarray(recall)).astype(np.float32)
        return dataclasses.replace(self, rewards=np.asarray(rewards), recall=kept)


@partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def sample(
    architecture: Architecture,
    params: Params,
    prompts: Any,
    key: jax.Array,
    settings: RarConfig,
    group_size: int,
    max_new_tokens: int,
    specials: tuple[int, int],
) -> Generation:
    """A group of attribute lists for each prompt; `specials` are the ids (end, padding)."""
    return generate(
        architecture.bind(params),
        prompts,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        key=key,
        eos_id=specials[0],
        pad_id=specials[1],
    )


@partial(jax.jit, static_argnums=0)
def _visual(architecture: Architecture, params: Params, prompts: Any) -> jax.Array:
    model = architecture.bind(params)
    return model.visual(prompts.patches, prompts.patch_segment, prompts.patch_position)


@partial(jax.jit, static_argnums=(0, 7))
def _retrieve(
    architecture: Architecture,
    params: Params,
    rows: Any,
    visual_tokens: jax.Array,
    gallery: jax.Array,
    relevant: jax.Array,
    exclude: jax.Array,
    negatives: int,
) -> tuple[jax.Array, jax.Array]:
    """Rank of the best positive and margin of each sample, both [q * g]."""
    group = rows.tokens.shape[0] // relevant.shape[0]
    vectors = embed_batch(architecture.bind(params), rows, visual_tokens)
    relevant, exclude = (jnp.repeat(x, group, axis=0) for x in (relevant, exclude))
    ranks = objectives.positive_rank(vectors, gallery, relevant, exclude)
    margin = objectives.margin_reward(vectors, gallery, relevant, exclude, negatives)
    return ranks, margin


class RarEnvironment:
    """Frozen R over a fixed gallery; queries are listings of the `reward` split.

    The gallery holds the listings of `gallery_splits`, embedded once with the attributes that the
    distilled G wrote. A query's own listing never counts.
    """

    def __init__(
        self,
        builder: RowBuilder,
        encoder: Encoder,
        attributes: Mapping[str, str],
        settings: RarConfig,
        seed: int,
    ):
        self.builder = builder
        self._encoder = encoder
        listings = builder.listings
        products = {p: n for n, p in enumerate(sorted({x.product_id for x in listings}))}
        self._products = np.array([products[x.product_id] for x in listings], np.int32)
        counts = np.bincount(self._products)
        queries = np.array(
            [
                i
                for i, x in enumerate(listings)
                if x.split == "reward" and counts[self._products[i]] > 1
            ],
            np.int64,
        )
        self.families = np.array([x.family_id or x.product_id for x in listings])
        self.training_queries, self.held_out_queries = self._divide(queries, settings, seed)
        longest = max(len(builder.prompt(int(i)).tokens) for i in queries)
        self.prompt_length = bucket_length(longest, builder.text)
        self._row_length = self._longest_row(queries)
        self.gallery = jnp.asarray(
            encoder.embed(builder, np.arange(len(listings)), attributes, label="reward gallery")
        )

    def _divide(
        self, queries: np.ndarray, settings: RarConfig, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out queries, disjoint by family."""
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

    def _longest_row(self, queries: np.ndarray) -> int:
        """Tokens of R's longest possible query row: samples of any length must fit one shape."""
        budget = self.builder.text
        longest = max(len(self.builder.embedder(int(i), None).tokens) for i in queries)
        # One more for the end behind the attributes.
        return bucket_length(longest + budget.max_attribute_tokens + 1, budget)

    def judge(
        self, prompts: Any, index: np.ndarray, generation: Generation, settings: RarConfig, k: int
    ) -> Rollout:
        """Reward the samples of a batch of queries.

        Args:
            prompts: G's prompts, whose pictures R looks at too, q rows.
            index: the queries' listings, [q].
            generation: the samples, [q g n].
            settings: which reward.
            k: of Recall@k.
        """
        texts, malformed = completion_texts(generation, self.builder.tokenizer)
        shape = np.asarray(generation.finished).shape
        ranks, margins = self.ranks(prompts, index, texts, settings.margin_negatives)
        counts = [
            0 if bad else len(parse_attributes(t)) for t, bad in zip(texts, malformed, strict=True)
        ]
        nothing = np.zeros(shape, np.float32)
        rollout = Rollout(
            rewards=nothing,
            recall=nothing,
            ranks=ranks.reshape(shape),
            margins=margins.reshape(shape),
            malformed=malformed.reshape(shape),
            attribute_counts=np.array(counts).reshape(shape),
            token_counts=np.asarray(generation.mask).sum(-1).reshape(shape),
            texts=texts,
        )
        return rollout.rewarded(settings, k)

    def ranks(
        self, prompts: Any, index: np.ndarray, texts: Sequence[str], negatives: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (int32) and margins (float32) of query texts, [q * g], g texts a query in order."""
        builder = self.builder
        group = len(texts) // len(index)
        rows = []
        for number, text in enumerate(texts):
            listing = int(index[number // group])
            rows.append(
                embedder_row(
                    builder.tokenizer,
                    builder.text,
                    builder.image,
                    title=builder.listings[listing].title,
                    attributes=text,
                    pictures=(builder.pictures[listing],),
                )
            )
        batch = builder.batch(rows, self._row_length, with_patches=False)
        # The samples of a group look at the one picture of their prompt.
        batch = batch._replace(visual_start=np.repeat(np.asarray(prompts.visual_start), group))
        architecture, params = self._encoder.architecture, self._encoder.params
        everything = np.arange(len(self._products))
        ranks, margin = _retrieve(
            architecture,
            params,
            batch,
            _visual(architecture, params, prompts),
            self.gallery,
            self._products[index][:, None] == self._products[None, :],
            np.asarray(index)[:, None] == everything[None, :],
            negatives,
        )
        return np.asarray(ranks), np.asarray(margin)
