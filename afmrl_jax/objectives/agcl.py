"""Attribute-guided contrastive learning (AGCL): InfoNCE with weights and a false-negative mask."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from afmrl_jax.objectives.agcl_kernels.checks import check_batch, check_unit
from afmrl_jax.objectives.agcl_kernels.collective import Placement
from afmrl_jax.objectives.agcl_kernels.forms import Form, choose, stream_of
from afmrl_jax.objectives.agcl_kernels.products import (
    VectorPrecision,
    accumulator,
    chosen_precision,
)
from afmrl_jax.objectives.agcl_kernels.rules import PAPER, Criteria, Weighting
from afmrl_jax.objectives.agcl_kernels.sides import Batch, Pairwise
from afmrl_jax.objectives.agcl_kernels.tile import Plan
from afmrl_jax.objectives.agcl_kernels.vjp import streamed_loss
from afmrl_jax.objectives.agcl_reference import dense_loss
from afmrl_jax.objectives.bm25 import Bm25Terms, bm25_scores
from afmrl_jax.objectives.bm25 import Form as Bm25Form
from afmrl_jax.types import AnyArray, Array, Float, Int

Number = float | Float[Array, ""]


class Teacher(NamedTuple):
    """A frozen embedder's view of the batch, by which likely false negatives are left out."""

    queries: Float[AnyArray, "q t"]
    """Its unit vectors, of any dimension."""
    candidates: Float[AnyArray, "c t"]
    share: Number = 0.95
    """Share of the positive's score above which a negative is left out."""


def agcl_loss(
    queries: Float[AnyArray, "q d"],
    candidates: Float[AnyArray, "c d"],
    bm25: Bm25Terms | Float[AnyArray, "q c"] | None,
    product_ids: Int[AnyArray, " q"],
    *,
    candidate_product_ids: Int[AnyArray, " c"] | None = None,
    temperature: Number = 0.05,
    gamma: Number = 0.1,
    delta: Number | None = None,
    agreement_rho: Number | None = None,
    agreement_epsilon: Number = 0.1,
    symmetric: bool = True,
    positives: Literal["pair", "product"] = "pair",
    bm25_reverse: Float[Array, "q q"] | bool = False,
    weighting: Weighting = PAPER,
    teacher: Teacher | None = None,
    oracle_ids: tuple[Int[AnyArray, " q"], Int[AnyArray, " c"]] | None = None,
    placebo_key: jax.Array | None = None,
    form: Form = "auto",
    bm25_form: Bm25Form = "auto",
    vector_precision: VectorPrecision = "auto",
    tile: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The AGCL loss of q pairs and any number of explicit hard negatives.

    Candidate i belongs to query i; candidates from q on are negatives of every query. With s_ij the
    cosine of query i and candidate j and B_ij the BM25 score of their attributes:

        w_ij = exp(1 + tanh(gamma B_ij))
        N_i  = { j != i : j is another product, and s_ij <= s_ii + delta,
                 and not (B_ij >= rho B_ii > 0 and s_ij > s_ii - epsilon) }
        L_i  = -log( w_ii e^{s_ii/tau} / (w_ii e^{s_ii/tau} + sum_{j in N_i} w_ij e^{s_ij/tau}) )

    Weights and mask are constants for the gradient, and the diagonal is never masked. gamma = 0
    without margins is InfoNCE over different products: all weights are then equal and cancel.
    A query without attributes (B_ii = 0) cannot agree with anything. A row without negatives costs
    nothing and has no gradient.

    Two listings are one product where their product ids are equal.
    With `positives="pair"` such a candidate is left out. With `"product"` it is a further positive,
    exempt from the other masks: with P_i all candidates of the product of query i,

        L_i = - mean_{p in P_i} log( w_ip e^{s_ip/tau} / sum_{j in P_i + N_i} w_ij e^{s_ij/tau} ),

    so that positives also compete with one another, as in the "out" form of SupCon.

    `weighting` changes w, see `Weighting`. Two further masks take pairs out of N_i. With t the
    cosine by a frozen `teacher`, they are those with t_ij > t_ii - (1 - share) |t_ii|, for t_ii > 0
    t_ij > share t_ii; and those whose `oracle_ids` are equal, a ceiling for all masks. The placebo
    has the weights of each row in a random order of its negatives.

    The symmetric loss is the mean over queries and over the candidates of pairs, which are
    contrasted with all queries by s_ij <= s_jj + delta and so on; hard negatives ask nothing.

    All forms agree, in value and gradient:

    * `dense`: the definition, literally. [q c] tables are kept for the backward pass.
    * `tiled`: never more than a tile of pairs. Weights and masks are made inside the tile, one pass
      serves both directions with online log-sum-exp, and the backward pass recomputes tiles from
      inputs and one number a row and a column. O((q + c) d) memory, four products of q c d
      instead of three.
    * `kept`: tiles whose logits are kept for the backward pass: O(q c) memory, a half or less of
      what `dense` takes, and three products.
    * `ring`, `gathered`: the same over the mesh's `data` axis, which splits queries and candidates;
      see `agcl_mesh`.
    * `auto`: `dense` for a given table of scores; on a mesh `gathered` as long as candidates and
      their gradient have at most 256 MiB, and `ring` above; on one device `kept` as long as the
      logits of its directions have at most 128 MiB, and `tiled` above.

    Example:
        >>> q = jnp.eye(2)
        >>> loss, _ = agcl_loss(q, q, None, jnp.arange(2), temperature=0.5, gamma=0.0)
        >>> round(float(loss), 4)  # log(1 + e^-2)
        0.1269

    Args:
        queries: unit vectors [q d]; sums are kept in float32, or in float64 for float64 vectors.
        candidates: unit vectors [c d], c >= q.
        bm25: attribute terms of both sides, or [q c] scores for `dense`, of query i as the query
            and candidate j as the document; None for no weights (all equal).
        product_ids: int32 [q], of queries and so of their candidates.
        candidate_product_ids: int32 [c]; needed where there are hard negatives.
        temperature: tau, positive; an array gets a gradient.
        gamma: scale of BM25 inside tanh; the paper's is 1.
        delta: margin above the positive at which a negative is held to be false; None for off.
        agreement_rho: share of the own BM25 score at which attributes agree; None for off.
        agreement_epsilon: how far below the positive an agreeing pair may score and still leave.
        symmetric: whether candidates are contrasted with queries, too.
        positives: what another candidate of the query's product is: `pair` leaves it out, for
            `product` it is a positive.
        bm25_reverse: scores of the second direction, candidate i as the query and query j as the
            document. False: `bm25` transposed, which differs a little, for BM25 normalises by the
            length of the document. True: from the terms. [q q]: given, for `dense`.
        weighting: weight of the positive, which negatives are weighed, and relative to what.
        teacher: vectors and share; None for no such mask.
        oracle_ids: int32 [q] and [c], such as true products or families; two that are equal are no
            negatives of each other, but no positives either.
        placebo_key: by which weights, and they alone, are permuted; None leaves them.
        form: how it is computed.
        bm25_form: how a tile of BM25 is computed, see `bm25_scores`.
        vector_precision: of products of float32 vectors in cosines and gradients. `float32` is
            exact; `bf16_x3` adds three products of bfloat16 parts, which matrix units do fast, with
            errors of cosines below 1e-5 (see `agcl_kernels.products`). `auto` is `bf16_x3` on GPUs
            with bfloat16 and `float32` elsewhere. `dense`, the definition, is always exact.
        tile: most rows and columns of a tile; None for the backend's (512, 512 on a CPU;
                4096, 512 for `kept`).
        mesh: for `ring` and `gathered`; None for the one of `jax.set_mesh`.

    Returns:
        The mean loss, float32 (float64 for float64 vectors), and metrics of the first direction,
        without gradients: `loss`; `accuracy` (share of queries whose positive beats every negative
        left), `positive_similarity`, `hardest_negative` (mean over the queries that have one),
        `masked` and its overlapping reasons `masked_by_identity`, `masked_by_margin`,
        `masked_by_agreement` and, where they are asked for, `masked_by_teacher` and
        `masked_by_oracle` (shares of the pairs off the diagonal), `mean_weight` before any
        division by the mean, and the histogram of weights: `weight_share_k` is the share of pairs
        with |ln w - 1| in [k/8, (k+1)/8), k = 0 ... 7.

    Raises:
        ValueError: the arrays do not describe one batch, vectors are not of unit length (seen only
            outside of `jax.jit`), or the form cannot be had with them.

    Reference: AFMRL, arXiv 2604.20135, section on AGCL; tiles after Inf-CL, arXiv 2410.17243;
    several positives after SupCon, arXiv 2004.11362; the teacher's share after NV-Retriever,
    arXiv 2407.15831.
    """
    queries, candidates = jnp.asarray(queries), jnp.asarray(candidates)
    bm25 = bm25 if bm25 is None or isinstance(bm25, Bm25Terms) else jnp.asarray(bm25)
    wide = accumulator(queries)

    def optional(x: Number | None) -> jax.Array | None:
        return None if x is None else jnp.asarray(x, wide)

    _check_settings(positives, temperature, weighting, agreement_rho)
    if isinstance(gamma, float) and gamma == 0 and agreement_rho is None:
        # All weights are equal and nobody asks who agrees.
        bm25, bm25_reverse = (None, False) if isinstance(bm25, Bm25Terms) else (bm25, bm25_reverse)
    terms = _as(bm25, wide) if isinstance(bm25, Bm25Terms) else None
    criteria = Criteria(
        jnp.asarray(gamma, wide),
        optional(delta),
        optional(agreement_rho),
        jnp.asarray(agreement_epsilon, wide),
        None if teacher is None else optional(teacher.share),
    )
    shape = queries.shape[0], candidates.shape[0]
    batch = Batch(
        jnp.asarray(product_ids),
        jnp.asarray(product_ids if candidate_product_ids is None else candidate_product_ids),
        terms,
        criteria,
        None if teacher is None else Pairwise(*map(jnp.asarray, teacher[:2])),
        None if oracle_ids is None else Pairwise(*map(jnp.asarray, oracle_ids)),
        None if placebo_key is None or bm25 is None else _orders(placebo_key, *shape),
    )
    check_batch(queries, candidates, bm25, bm25_reverse, batch)
    taught = {} if batch.teacher is None else batch.teacher._asdict()
    check_unit(
        queries=queries, candidates=candidates, **{f"teacher's {k}": x for k, x in taught.items()}
    )
    tau, further = jnp.asarray(temperature, wide), positives == "product"
    placement = choose(form, bm25, queries, candidates, mesh, symmetric)
    if placement == "dense":
        tables = _tables(bm25 if terms is None else terms, bm25_reverse, shape, wide, bm25_form)
        return dense_loss(
            queries,
            candidates,
            tau,
            *tables,
            batch,
            symmetric=symmetric,
            count_positives=further,
            weighting=weighting,
        )
    vocab = 0 if terms is None else terms.statistics.idf.shape[0]
    keep = placement == "kept"
    precision = chosen_precision(vector_precision)
    reverse = bm25_reverse is True
    plan = Plan(
        symmetric, further, reverse, bm25_form, vocab, precision, keep=keep, weighting=weighting
    )
    where: Placement = "tiled" if placement == "kept" else placement
    stream = stream_of(queries, candidates, where, mesh, tile, plan)
    return streamed_loss(stream, queries, candidates, tau, batch)


def _check_settings(
    positives: str, temperature: Number, weighting: Weighting, agreement_rho: Number | None
) -> None:
    """Refuse settings of the loss that are none, or that do not go together."""
    if positives not in ("pair", "product") or (
        isinstance(temperature, float) and temperature <= 0
    ):
        raise ValueError(
            f"positives must be 'pair' or 'product' and temperature above 0: {positives!r}, "
            f"{temperature}"
        )
    if weighting.pairs == "agreeing" and agreement_rho is None:
        raise ValueError("to weigh agreeing pairs, say from which share they agree: agreement_rho")
    if weighting.normalized and positives == "product":
        raise ValueError(
            "weights relative to their mean contrast one positive with its negatives: take the "
            "positives 'pair'"
        )


def _orders(key: jax.Array, count: int, columns: int) -> Pairwise:
    """Which text stands in for each in the placebo, of `count` queries and `columns` candidates."""
    first, second = jax.random.split(key)
    orders = (jax.random.permutation(k, n) for k, n in ((first, count), (second, columns)))
    return Pairwise(*(x.astype(jnp.int32) for x in orders))


def _as(terms: Bm25Terms, kind: jnp.dtype) -> Bm25Terms:
    """The same texts with statistics in another float type."""
    statistics = terms.statistics
    statistics = statistics._replace(
        idf=statistics.idf.astype(kind),
        average_length=jnp.asarray(statistics.average_length, kind),
    )
    return terms._replace(statistics=statistics)


def _tables(
    bm25: Bm25Terms | jax.Array | None,
    reverse: jax.Array | bool,
    shape: tuple[int, int],
    kind: jnp.dtype,
    form: Bm25Form,
) -> tuple[jax.Array, jax.Array | None]:
    """BM25 of both directions as whole tables; the second is None where the first one serves."""
    count = shape[0]
    if bm25 is None:
        return jnp.zeros(shape, kind), None
    given = reverse if isinstance(reverse, jax.Array) else None
    if not isinstance(bm25, Bm25Terms):
        return bm25, given
    statistics, query, candidate = bm25
    if reverse is True:
        given = bm25_scores(statistics, candidate[:count], query, form=form)
    return bm25_scores(statistics, query, candidate, form=form), given
