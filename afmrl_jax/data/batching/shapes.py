"""Shapes of batches: which ones are compiled, and how much of them is padding."""

from __future__ import annotations

from collections import Counter

from afmrl_jax.data.batching.chunk_arrays import Chunks
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.row_packing import PackedPrompts, PackedRows

AnyRows = VLBatch | PackedRows | PackedPrompts | Chunks
"""Every form that the rows of a batch come in."""


def _bins(rows: AnyRows) -> VLBatch | Chunks:
    """Packed rows as the bins that they lie in."""
    rows = rows.packed if isinstance(rows, PackedPrompts) else rows
    return rows.bins if isinstance(rows, PackedRows) else rows


class ShapeCounter:
    """The distinct shapes among some batches: one program is compiled for each."""

    def __init__(self) -> None:
        self._seen: set[tuple[tuple[int, ...], ...]] = set()

    def add(self, rows: AnyRows) -> None:
        """Count a `VLBatch`, whose length in tokens and number of patch bins may vary, packed rows,
        whose bins are counted as rows, or `Chunks`, whose shapes may vary.
        """
        rows = _bins(rows)
        if isinstance(rows, Chunks):
            parts = [*(x.tokens for x in rows.texts), *(x.patch_segment for x in rows.pictures)]
            self._seen.add(tuple(x.shape for x in parts))
        else:
            self._seen.add((rows.tokens.shape, (0 if rows.patches is None else len(rows.patches),)))

    def __len__(self) -> int:
        return len(self._seen)

    def __str__(self) -> str:
        plural = "" if len(self) == 1 else "s"
        if any(len(shape) == 4 for seen in self._seen for shape in seen):
            shapes = "; ".join(
                ", ".join("x".join(map(str, shape)) for shape in seen)
                for seen in sorted(self._seen)
            )
            what = "chunks x devices x rows or bins x places"
        else:
            shapes = ", ".join(f"{b}x{t}/{n}" for (b, t), (n,) in sorted(self._seen))
            what = "rows x tokens / patch bins"
        return f"{len(self)} shape{plural} compiled ({what}): {shapes}"


def padding_counts(rows: AnyRows) -> dict[str, tuple[int, int]]:
    """Padded and all positions of a batch on the host, by kind: `text` and, if any, `patch`.

    Args:
        rows: a `VLBatch`, packed rows, or `Chunks`, whose skipped chunks do not count. If visual
            tokens are known, only text counts.
    """
    rows = _bins(rows)
    if isinstance(rows, Chunks):
        texts = [x.token_mask[: int(x.used)] for x in rows.texts]
        segments = [x.patch_segment[: int(x.used)] for x in rows.pictures]
        # The one unmasked position of each empty row is padding too.
        empty = sum(x.size // x.shape[-1] for x in texts) - len(rows.place)
    else:
        texts, segments, empty = [rows.token_mask], [rows.patch_segment], 0
    places, patches = (sum(x.size for x in kind) for kind in (texts, segments))
    padded = places - sum(int(x.sum()) for x in texts) + empty
    found = {"text": (padded, places)}
    if patches:
        found["patch"] = (sum(int((x == 0).sum()) for x in segments), patches)
    return found


class PaddingShares:
    """Shares of the places of batches that are padding, of text and of pictures."""

    def __init__(self) -> None:
        self._recent: Counter[tuple[str, str]] = Counter()
        self._all: Counter[tuple[str, str]] = Counter()

    def add(self, rows: AnyRows) -> None:
        """Count a batch on the host."""
        for kind, (padded, places) in padding_counts(rows).items():
            self._recent.update({(kind, "padded"): padded, (kind, "places"): places})

    def lap(self) -> dict[str, float]:
        """The shares since the last call, as `text_padding` and `patch_padding`."""
        found = _shares(self._recent)
        self._all.update(self._recent)
        self._recent.clear()
        return found

    def __str__(self) -> str:
        shares = _shares(self._all + self._recent).items()
        return ", ".join(f"{name.replace('_', ' ')} {100 * x:.1f} %" for name, x in shares)


def _shares(counts: Counter[tuple[str, str]]) -> dict[str, float]:
    kinds = [kind for kind, what in counts if what == "places"]
    return {f"{k}_padding": round(counts[k, "padded"] / counts[k, "places"], 4) for k in kinds}
