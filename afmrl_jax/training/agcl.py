"""Attribute-guided contrastive training, and its InfoNCE baseline (gamma and mask off)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from afmrl_jax.config import AgclConfig, RunConfig
from afmrl_jax.config.validation import require
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.batches import ContrastiveBatch, Judges
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.mined_negatives import MinedTables
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.objectives.agcl import Teacher, agcl_loss
from afmrl_jax.objectives.agcl_kernels.rules import Weighting
from afmrl_jax.objectives.bm25 import Bm25Statistics, Bm25Terms, fit_bm25
from afmrl_jax.training.encode_batch import encode_batch, tower_learns
from afmrl_jax.training.loop import FrozenStepFunction, LoopConfig, run_loop
from afmrl_jax.training.mining import refresh_of
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.state import (
    TrainState,
    gradient_step,
    initial_state,
    make_optimizer,
    trained_weights,
)
from afmrl_jax.training.vision_cache import with_cached_tokens

MINED = "mined"
"""Folder of a stage's tables of hard negatives."""


def train_agcl(
    config: RunConfig,
    settings: AgclConfig,
    name: str,
    folder: Path,
    trainee: Partition,
    builder: RowBuilder,
    *,
    attributes: Lists | None = None,
    attributes_in_input: bool = False,
    teacher: np.ndarray | None = None,
    seed: int,
) -> Params:
    """Train the embedder.

    Args:
        config: the run.
        settings: loss, batch and schedule of this stage.
        name: the stage's name.
        folder: the stage's folder.
        trainee: the embedder, with the parameters to start from.
        builder: rows over the listings of the `train` split.
        attributes: lists of the listings; weights and masks come from the greedy ones written from
            picture and title, whatever a view shows: the loss knows more than a side of a pair.
        attributes_in_input: whether the embedder also reads them.
        teacher: unit vectors of the listings by a frozen embedder, float [n t]; needed for
            `teacher_share` alone.
        seed: of batches and dropout; stages that are compared share it.

    Returns:
        All of the embedder's parameters; those that learn averaged with `optimizer.ema_decay`.

    Raises:
        RunError: a teacher is to mask, and none is given.
    """
    judges = judges_of(name, settings, builder.listings, teacher)
    use_terms = attributes is not None and (
        settings.gamma != 0 or settings.agreement_rho is not None
    )
    vocabulary, statistics = None, None
    if use_terms:
        assert attributes is not None
        vocabulary, statistics = term_statistics(builder, attributes.both)
    loop = LoopConfig.of(config, name, folder, settings.steps)
    trained = builder
    if config.visual_cache is not None:
        require(
            not tower_learns(trainee.trainable),
            "visual_cache keeps the tokens of a frozen vision tower, and the adapters of "
            f"{config.embedder.weights} train in it: leave visual_cache out",
        )
        params = trainee.whole(trainee.trainable)
        where = Path(config.visual_cache)
        trained = with_cached_tokens(builder, trainee.architecture, params, where, loop.mesh)
    read = attributes if attributes_in_input else None
    mining = settings.mining
    mined = None
    if mining.hard_negatives:
        mined = MinedTables(folder / MINED, mining.every, mining.hard_negatives)
    source = contrastive_source(
        trained,
        settings,
        seed,
        attributes=None if attributes is None else attributes.both,
        read=read,
        vocabulary=vocabulary,
        mined=mined,
        judges=judges,
        shares=loop.mesh.shape["data"],
        packed=config.packed,
    )
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    step = make_agcl_step(trainee.architecture, settings, statistics, optimizer)
    state = initial_state(trainee.trainable, optimizer)
    refresh = None
    if mined is not None:
        products, whole = source.identity, None if read is None else read.both
        refresh = refresh_of(name, mined, trainee, builder, products, mining, whole, loop.mesh)
    state = run_loop(loop, state, source, partial(step, trainee.frozen), refresh=refresh)
    return trainee.whole(trained_weights(state, settings.optimizer))


def judges_of(
    name: str, settings: AgclConfig, listings: Sequence[Listing], teacher: np.ndarray | None
) -> Judges | None:
    """What the masks of a stage read of its listings beside their lists; None if they do not.

    Args:
        name: of the stage.
        settings: of the stage.
        listings: of the `train` split, n.
        teacher: unit vectors of them by a frozen embedder, float [n t].

    Raises:
        RunError: a teacher is to mask, and none is given or its vectors are not finite.
    """
    if settings.teacher_share is None:
        teacher = None
    elif teacher is None:
        raise RunError(
            f"{name}: agcl.teacher_share {settings.teacher_share} masks by a teacher, and this "
            "stage has none: give `teacher`, the vectors of a finished embedder, or set "
            "--agcl.teacher-share None"
        )
    elif not np.isfinite(teacher).all():
        raise RunError(
            f"{name}: the teacher's vectors are not finite; train it again with a lower "
            "--agcl.optimizer.learning-rate, or set --agcl.teacher-share None"
        )
    oracle = None
    if settings.oracle_mask is not None:
        whole = settings.oracle_mask == "family"
        names = [x.group if whole else x.true_product for x in listings]
        oracle = np.unique(names, return_inverse=True)[1].astype(np.int32)
    return None if teacher is None and oracle is None else Judges(teacher, oracle)


def term_statistics(
    builder: RowBuilder, attributes: Mapping[str, str]
) -> tuple[Bm25Vocabulary, Bm25Statistics]:
    """Terms of the listings' attribute texts (by listing id), and their BM25 statistics."""
    texts = [attributes.get(x.listing_id, "") for x in builder.listings]
    vocabulary = Bm25Vocabulary.fit(texts)
    return vocabulary, fit_bm25(vocabulary.encode(texts, builder.text.max_terms), vocabulary.size)


def contrastive_source(
    builder: RowBuilder,
    settings: AgclConfig,
    seed: int,
    *,
    attributes: Mapping[str, str] | None = None,
    read: Lists | None = None,
    vocabulary: Bm25Vocabulary | None = None,
    mined: MinedTables | None = None,
    judges: Judges | None = None,
    shares: int = 1,
    packed: bool = False,
) -> ContrastiveSource:
    """The batches of a contrastive stage.

    Args:
        builder: rows over the listings of the `train` split.
        settings: of the stage.
        seed: of batches and dropout.
        attributes: attribute text by listing id, for the BM25 terms.
        read: the lists that the embedder reads; None: it reads none.
        vocabulary: of the terms; None: batches hold none.
        mined: hard negatives of the stage, where it has any.
        judges: of the listings, where masks read any.
        shares: devices that share each chunk of a batch, or its bins of rows.
        packed: whether rows share bins where they are not cut into chunks.
    """
    return ContrastiveSource(
        builder,
        steps=settings.steps,
        batch_size=settings.batch_size,
        sibling_share=settings.sibling_share,
        category_share=settings.category_share,
        category_batch=settings.category_batch,
        duplicate_share=settings.duplicate_share,
        mask_duplicate_groups=settings.mask_duplicate_groups,
        seed=seed,
        attributes_in_input=read,
        attributes_for_terms=attributes,
        vocabulary=vocabulary,
        dropout=settings.dropout,
        views=settings.views,
        mined=mined,
        judges=judges,
        chunk_tokens=settings.chunk_tokens,
        shares=shares,
        packed=packed,
    )


def make_agcl_step(
    architecture: Architecture,
    settings: AgclConfig,
    statistics: Bm25Statistics | None,
    optimizer: optax.GradientTransformation,
) -> FrozenStepFunction:
    """The jitted step (frozen, state, batch, key) -> (state, metrics) of contrastive training."""

    @partial(jax.jit, donate_argnums=1)
    def step(
        frozen: Params, state: TrainState, batch: ContrastiveBatch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = batch.products.shape[0]
        terms = None
        if statistics is not None:
            assert batch.query_terms is not None
            assert batch.candidate_terms is not None
            terms = Bm25Terms(statistics, batch.query_terms, batch.candidate_terms).localised()

        options = loss_options(settings, batch, state.step, key)

        def contrast(vectors: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return agcl_loss(
                vectors[:count],
                vectors[count:],
                terms,
                batch.products,
                candidate_product_ids=batch.candidate_products,
                **options,
            )

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            wanted = settings.prefix_weight > 0 and batch.prompt_last is not None
            vectors, bare = encode_batch(architecture, frozen, params, batch, prefix=wanted)
            value, metrics = contrast(vectors)
            if bare is not None:
                prefix, _ = contrast(bare)
                value += settings.prefix_weight * (prefix - value)
                metrics |= {"loss": value, "prefix_loss": prefix}
            return value, metrics

        return gradient_step(state, loss, optimizer)

    return step


def loss_options(
    settings: AgclConfig, batch: ContrastiveBatch, done: jax.Array, key: jax.Array
) -> dict[str, Any]:
    """Arguments of `agcl_loss` that say how pairs of a batch weigh and which leave.

    Args:
        settings: of the stage.
        batch: its judges are read, where it has any.
        done: steps done before this one, int scalar.
        key: of the step; only a placebo draws with it.
    """
    delta: float | jax.Array | None = settings.delta
    epsilon: float | jax.Array = settings.agreement_epsilon
    if settings.warmup_steps:
        # A margin that no cosine reaches; who agrees is still known, for weights.
        ready, never = done >= settings.warmup_steps, jnp.float32(jnp.inf)
        delta = None if delta is None else jnp.where(ready, jnp.float32(delta), never)
        epsilon = jnp.where(ready, jnp.float32(epsilon), -never)
    teacher = oracle = None
    if batch.query_judges is not None and batch.candidate_judges is not None:
        sides = batch.query_judges, batch.candidate_judges
        if settings.teacher_share is not None:
            teacher = Teacher(sides[0].teacher, sides[1].teacher, settings.teacher_share)
        if settings.oracle_mask is not None:
            oracle = sides[0].oracle, sides[1].oracle
    return {
        "temperature": settings.temperature,
        "gamma": settings.gamma,
        "delta": delta,
        "agreement_rho": settings.agreement_rho,
        "agreement_epsilon": epsilon,
        "symmetric": settings.symmetric,
        "positives": settings.positives,
        "bm25_reverse": settings.bm25_reverse,
        "weighting": Weighting(
            settings.positive_weight, settings.weighted_pairs, settings.normalize_weights
        ),
        "teacher": teacher,
        "oracle_ids": oracle,
        "placebo_key": key if settings.permute_weights else None,
        "vector_precision": settings.vector_precision,
    }
