"""What an OpenAI-style endpoint answers, taken apart without trust, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afmrl_jax.data.attributes.replies import MAX_BODY, reply_of, without_controls
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.json_files import parse_json

UNIT_TOLERANCE = 1e-2
"""How far a length may be from 1: vectors may come in bfloat16."""
SHOWN = 160
"""Characters of an endpoint's words that a message repeats."""


class Wrong(RunError):
    """An answer that is none; the message says why, without naming the endpoint."""


def shown(words: object) -> str:
    """What an endpoint said, fit for a message."""
    text = " ".join(without_controls(str(words)).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def value_of(status: int, headers: Mapping[str, str], body: bytes) -> object:
    """The JSON value of an answer; NaN in it is read.

    Raises:
        Wrong: a redirect, an error, too large, or no JSON.
    """
    start = shown(body[: 4 * SHOWN].decode("utf-8", "replace"))
    if 300 <= status < 400:
        to = shown(headers.get("location", "an address that it does not name"))
        raise Wrong(f"it redirects to {to}; redirects are not followed: give the address itself")
    if status != 200:
        hint = "; does the address end in /v1?" if status in (404, 405) else ""
        raise Wrong(f"it answers with the status {status}{hint} ({start or 'nothing more'})")
    if len(body) > MAX_BODY:
        raise Wrong(f"the answer is larger than {MAX_BODY:,} bytes, or never ends")
    if body.lstrip()[:1] == b"<":
        raise Wrong(f"it answers with a page of HTML, not with JSON ({start})")
    try:
        return parse_json(body, "the answer", nan=True)
    except RunError as error:
        raise Wrong(f"{error} ({start or 'it is empty'})") from error


def vectors_of(value: object, count: int, dim: int) -> np.ndarray:
    """The unit vectors of an answer of `/v1/embeddings`, float32 [count dim].

    Args:
        value: of the answer.
        count: how many were asked for.
        dim: how many numbers each has.

    Raises:
        Wrong: what is missing or no such vector.
    """
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not all(isinstance(x, dict) for x in data):
        raise Wrong(f"the answer has no list `data` of objects ({shown(value)})")
    if len(data) != count:
        raise Wrong(f"{len(data)} vectors for {count} texts: some are missing or too many")
    indexes = [x.get("index") for x in data]
    if indexes != list(range(count)):
        if sorted(map(str, indexes)) == sorted(map(str, range(count))):
            raise Wrong(
                f"the vectors come in another order than they were asked for (index {indexes}); "
                "clients that read them in order mix them up"
            )
        raise Wrong(f"an index is wrong: {shown(indexes)} instead of {list(range(count))}")
    found = np.stack([_vector(x.get("embedding"), dim) for x in data])
    lengths = np.linalg.norm(found, axis=1)
    if np.abs(lengths - 1).max() > UNIT_TOLERANCE:
        raise Wrong(
            f"the vectors are not normalized: their lengths are {lengths.min():.4g} to "
            f"{lengths.max():.4g} instead of 1"
        )
    return found / lengths[:, None]


def _vector(numbers: object, dim: int) -> np.ndarray:
    if not isinstance(numbers, list) or not all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in numbers
    ):
        raise Wrong(f"an embedding is no list of numbers ({shown(numbers)})")
    if len(numbers) != dim:
        raise Wrong(f"a vector has {len(numbers)} numbers, and the run's have {dim}")
    found = np.asarray(numbers, np.float64)
    if not np.isfinite(found).all():
        raise Wrong("a vector holds NaN or an infinity")
    # A number that float32 cannot hold is no part of a unit vector either.
    return np.clip(found, -1e30, 1e30).astype(np.float32)


def mixed_up(ours: np.ndarray, theirs: np.ndarray, least: float) -> None:
    """See that no vector of an answer is another listing's.

    Args:
        ours: unit vectors [n d] of the texts, in order.
        theirs: those of the answer.
        least: cosine from which two vectors are the same.

    Raises:
        Wrong: a vector is that of another text, and not of its own.
    """
    cosines = ours @ theirs.T
    for n, row in enumerate(cosines):
        best = int(row.argmax())
        if row[n] < least <= row[best]:
            raise Wrong(
                f"the vectors are in another order: at place {best} is that of text {n} (cosine "
                f"{row[best]:.4f}), at place {n} another's ({row[n]:.4f})"
            )


def list_of(value: object, body: bytes) -> str:
    """The text of an answer of `/v1/chat/completions`.

    Args:
        value: of the answer, to be shown if it is none.
        body: the answer.

    Raises:
        Wrong: it holds no message.
    """
    try:
        return reply_of(body, "the answer")
    except RunError as error:
        raise Wrong(f"{error} ({shown(value)})") from error


def agreement(ours: str, theirs: str) -> float:
    """Pairs that two lists share, as a share of all pairs of either; 1 for two empty ones.

    Example:
        >>> agreement("color: red; type: chair", "type: chair; color: blue")
        0.3333333333333333
    """
    one, other = (_pairs(x.split(";")) for x in (ours, theirs))
    return len(one & other) / len(one | other) if one | other else 1.0


def _pairs(parts: Sequence[str]) -> set[tuple[str, str]]:
    split = (x.partition(":") for x in parts)
    return {(key.strip(), value.strip()) for key, colon, value in split if colon}
