"""What a loss over a batch refuses, with a word on what to do."""

from __future__ import annotations

import jax
import numpy as np

from afmrl_jax.models.embedder import UNIT_TOLERANCE
from afmrl_jax.objectives.agcl_kernels.sides import Batch
from afmrl_jax.objectives.bm25 import Bm25Terms


def check_unit(**sides: jax.Array) -> None:
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


def check_batch(
    queries: jax.Array,
    candidates: jax.Array,
    bm25: Bm25Terms | jax.Array | None,
    reverse: jax.Array | bool,
    batch: Batch,
) -> None:
    """Refuse what is not one batch.

    Raises:
        ValueError: names the array that does not fit, and the shape that would.
    """
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
    wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    wanted["products"] = (batch.products.shape, (count,))
    wanted["candidate_products"] = (batch.candidate_products.shape, (columns,))
    if batch.teacher is not None:
        queried, offered = batch.teacher
        wanted["teacher's queries"] = (queried.shape, (count, *offered.shape[1:]))
        wanted["teacher's candidates"] = (offered.shape, (columns, *queried.shape[1:]))
    if batch.oracle is not None:
        wanted["oracle_ids of queries"] = (batch.oracle.queries.shape, (count,))
        wanted["oracle_ids of candidates"] = (batch.oracle.candidates.shape, (columns,))
    if isinstance(bm25, Bm25Terms):
        wanted["texts of queries"] = (bm25.query.shape[:1], (count,))
        wanted["texts of candidates"] = (bm25.candidate.shape[:1], (columns,))
    elif bm25 is not None:
        wanted["bm25"] = (bm25.shape, (count, columns))
    if not isinstance(reverse, bool):
        wanted["bm25_reverse"] = (reverse.shape, (count, count))
    for name, (found, right) in wanted.items():
        if found != right:
            raise ValueError(
                f"{name}: {found}, but {count} queries and {columns} candidates need {right}"
            )
    if reverse is True and bm25 is not None and not isinstance(bm25, Bm25Terms):
        raise ValueError("scores of the second direction need terms: pass them as `bm25_reverse`")
