"""How much of a batch is padding."""

from __future__ import annotations

from typing import Any

from afmrl_jax.data.batching.chunk_arrays import Chunks


def padding_counts(rows: Any) -> dict[str, tuple[int, int]]:
    """Padded and all places of a batch on the host, by kind: `text` and, if there are, `patch`.

    Args:
        rows: a `VLBatch`, or `Chunks`, whose skipped chunks do not count. Where visual tokens are
            known, text alone counts.
    """
    if isinstance(rows, Chunks):
        texts = [x.token_mask[: int(x.used)] for x in rows.texts]
        segments = [x.patch_segment[: int(x.used)] for x in rows.pictures]
        # The one visible place of each empty row is padding too.
        empty = sum(x.size // x.shape[-1] for x in texts) - len(rows.place)
    else:
        texts, segments, empty = [rows.token_mask], [rows.patch_segment], 0
    places, patches = (sum(x.size for x in kind) for kind in (texts, segments))
    padded = places - sum(int(x.sum()) for x in texts) + empty
    found = {"text": (padded, places)}
    if patches:
        found["patch"] = (sum(int((x == 0).sum()) for x in segments), patches)
    return found
