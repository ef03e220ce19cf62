"""Attribute-guided contrastive learning (AGCL): InfoNCE with weights and a false-negative mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.models.embedder import UNIT_TOLERANCE
from afmrl_jax.objectives.agcl_kernels.collective import DATA, Placement
from afmrl_jax.objectives.agcl_kernels.products import (
    VectorPrecision,
    accumulator,
    chosen_precision,
)
from afmrl_jax.objectives.agcl_kernels.tile import Plan
from afmrl_jax.objectives.agcl_kernels.vjp import Batch, Stream, padding, streamed_loss, tile_length
from afmrl_jax.objectives.agcl_reference import dense_loss
from afmrl_jax.objectives.bm25 import Bm25Terms, bm25_scores
from afmrl_jax.objectives.bm25 import Form as Bm25Form
from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Float, Int

Form = Literal["auto", "dense", "kept", "tiled", "ring", "gathered"]
Number = float | Float[Array, ""]
CPU_TILE, CPU_KEPT_TILE, DEVICE_TILE = (512, 512), (4096, 512), (4096, 4096)
"""Rows and columns of a tile: what fits a CPU's caches, and enough work for one launch elsewhere.
Where logits are kept, tall tiles cost no memory and add up the candidates' gradient once. The last
is an estimate; no accelerator was at hand to measure."""
KEEP_BYTES = 2**27
"""Largest size of the logits of all pairs that `auto` keeps between the passes on one device: 4096
pairs in float32 and both directions. Up to there memory is no concern, and a product of four and
the second making of weights and masks are spared."""
GATHER_BYTES = 2**28
"""Largest size of all candidates and their gradient that `auto` brings to every device. Up to there
one collective and fewer, longer loops are worth more than memory that any device has."""


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
        `masked` and its three overlapping reasons `masked_by_identity`, `masked_by_margin`,
        `masked_by_agreement` (shares of the pairs off the diagonal), `mean_weight`, and the
        histogram of weights: `weight_share_k` is the share of pairs with tanh(gamma B) in
        [k/8, (k+1)/8), k = 0 ... 7.

    Raises:
        ValueError: the arrays do not describe one batch, vectors are not of unit length (seen only
            outside of `jax.jit`), or the form cannot be had with them.

    Reference: AFMRL, arXiv 2604.20135, section on AGCL; tiles after Inf-CL, arXiv 2410.17243;
    several positives after SupCon, arXiv 2004.11362.
    """
    queries, candidates = jnp.asarray(queries), jnp.asarray(candidates)
    bm25 = bm25 if bm25 is None or isinstance(bm25, Bm25Terms) else jnp.asarray(bm25)
    wide = accumulator(queries)

    def optional(x: Number | None) -> jax.Array | None:
        return None if x is None else jnp.asarray(x, wide)

    if positives not in ("pair", "product") or (
        isinstance(temperature, float) and temperature <= 0
    ):
        raise ValueError(
            f"positives must be 'pair' or 'product' and temperature above 0: {positives!r}, "
            f"{temperature}"
        )
    if isinstance(gamma, float) and gamma == 0 and agreement_rho is None:
        # All weights are equal and nobody asks who agrees.
        bm25, bm25_reverse = (None, False) if isinstance(bm25, Bm25Terms) else (bm25, bm25_reverse)
    terms = _as(bm25, wide) if isinstance(bm25, Bm25Terms) else None
    batch = Batch(
        jnp.asarray(product_ids),
        jnp.asarray(product_ids if candidate_product_ids is None else candidate_product_ids),
        terms,
        jnp.asarray(gamma, wide),
        optional(delta),
        optional(agreement_rho),
        jnp.asarray(agreement_epsilon, wide),
    )
    _check(queries, candidates, bm25, bm25_reverse, batch)
    _check_unit(queries=queries, candidates=candidates)
    tau, further = jnp.asarray(temperature, wide), positives == "product"
    placement = _choose(form, bm25, queries, candidates, mesh, symmetric)
    if placement == "dense":
        shape = (queries.shape[0], candidates.shape[0])
        tables = _tables(bm25 if terms is None else terms, bm25_reverse, shape, wide, bm25_form)
        return dense_loss(
            queries, candidates, tau, *tables, batch, symmetric=symmetric, count_positives=further
        )
    vocab = 0 if terms is None else terms.statistics.idf.shape[0]
    keep = placement == "kept"
    precision = chosen_precision(vector_precision)
    plan = Plan(symmetric, further, bm25_reverse is True, bm25_form, vocab, precision, keep=keep)
    where: Placement = "tiled" if placement == "kept" else placement
    stream = _stream(queries, candidates, where, mesh, tile, plan)
    return streamed_loss(stream, queries, candidates, tau, batch)


def _check_unit(**sides: jax.Array) -> None:
    """Refuse vectors whose scores are no cosines; inside of a compiled program nothing is known.

    Raises:
        ValueError: names the first.
    """
    for name, vectors in sides.items():
        if isinstance(vectors, jax.core.Tracer):
            continue
        norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=-1)
        wrong = np.flatnonzero(np.abs(norms - 1) > UNIT_TOLERANCE)
        if len(wrong):
            raise ValueError(
                f"AGCL compares cosines, and {len(wrong)} of the {len(norms)} {name} are not unit "
                f"vectors (the norm of number {wrong[0]} is {norms[wrong[0]]:.4g}): divide each by "
                "its norm"
            )


def _as(terms: Bm25Terms, kind: jnp.dtype) -> Bm25Terms:
    """The same texts with statistics in another float type."""
    statistics = terms.statistics
    statistics = statistics._replace(
        idf=statistics.idf.astype(kind),
        average_length=jnp.asarray(statistics.average_length, kind),
    )
    return terms._replace(statistics=statistics)


def _choose(
    form: Form,
    bm25: Bm25Terms | jax.Array | None,
    queries: jax.Array,
    candidates: jax.Array,
    mesh: Mesh | None,
    symmetric: bool,
) -> Literal["dense", "kept"] | Placement:
    given = isinstance(bm25, jax.Array)
    if form not in get_args(Form):
        raise ValueError(f"AGCL has the forms {', '.join(get_args(Form))}, not {form!r}")
    if given and form not in ("auto", "dense"):
        raise ValueError(
            f"form {form!r} makes its own tiles of BM25: pass `Bm25Terms` instead of scores, or "
            "take the form 'dense'"
        )
    shards = _shards(mesh)
    if form in ("ring", "gathered") and not shards:
        raise ValueError(
            f"form {form!r} needs a mesh with the axis {DATA!r}: pass `mesh`, or call within "
            "`jax.set_mesh`"
        )
    if form != "auto":
        return form
    if given:
        return "dense"
    itemsize = accumulator(queries).itemsize
    if shards < 2:
        logits = queries.shape[0] * candidates.shape[0] * itemsize * (2 if symmetric else 1)
        return "kept" if logits <= KEEP_BYTES else "tiled"
    gradient = candidates.size * itemsize
    return "gathered" if candidates.nbytes + gradient <= GATHER_BYTES else "ring"


def _shards(mesh: Mesh | None) -> int:
    """Size of the mesh's data axis; 0 where there is none."""
    found = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 0 if found.empty else int(dict(found.shape).get(DATA, 0))


def _stream(
    queries: jax.Array,
    candidates: jax.Array,
    placement: Placement,
    mesh: Mesh | None,
    tile: tuple[int, int] | None,
    plan: Plan,
) -> Stream:
    """Equal tiles of at most the wished size, and whether any has padding."""
    on_cpu = CPU_KEPT_TILE if plan.keep else CPU_TILE
    wanted = tile or (on_cpu if built_for() == "cpu" else DEVICE_TILE)
    shards = 1 if placement == "tiled" else _shards(mesh)
    counts = queries.shape[0], candidates.shape[0]
    rows, cols = (tile_length(n, shards, most) for n, most in zip(counts, wanted, strict=True))
    padded = bool(padding(counts[0], shards, rows) or padding(counts[1], shards, cols))
    return Stream(replace(plan, padded=padded), placement, mesh, shards, (rows, cols))


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


def _check(
    queries: jax.Array,
    candidates: jax.Array,
    bm25: Bm25Terms | jax.Array | None,
    reverse: jax.Array | bool,
    identities: Batch,
) -> None:
    """Refuse what is not one batch, or a setting out of its range."""
    if not (queries.ndim == candidates.ndim == 2 and queries.shape[1] == candidates.shape[1]):
        raise ValueError(
            f"queries {queries.shape} and candidates {candidates.shape} must be [q d] and [c d]"
        )
    count, columns = queries.shape[0], candidates.shape[0]
    if not 0 < count <= columns:
        raise ValueError(
            f"{count} queries and {columns} candidates: candidate i must belong to query i, and "
            "hard negatives follow"
        )
    wanted: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...]]] = {}
    for side, size in (("", count), ("candidate_", columns)):
        ids = getattr(identities, f"{side}products")
        wanted[f"{side}products"] = (ids.shape, (size,))
    if isinstance(bm25, Bm25Terms):
        wanted["texts of queries"] = (bm25.query.shape[:1], (count,))
        wanted["texts of candidates"] = (bm25.candidate.shape[:1], (columns,))
    elif bm25 is not None:
        wanted["bm25"] = (bm25.shape, (count, columns))
    if not isinstance(reverse, bool):
        wanted["bm25_reverse"] = (reverse.shape, (count, count))
    for name, (found, right) in wanted.items():
        if found is not None and found != right:
            raise ValueError(
                f"{name}: {found}, but {count} queries and {columns} candidates need {right}"
            )
    if reverse is True and bm25 is not None and not isinstance(bm25, Bm25Terms):
        raise ValueError("scores of the second direction need terms: pass them as `bm25_reverse`")
