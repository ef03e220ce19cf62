"""Approximate search by ScaNN (Linux only; imported when first used)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.retrieval.index_file import AGAIN, NAME, IndexFile
from afmrl_jax.retrieval.types import (
    SearchResult,
    check_known,
    check_new,
    check_vectors,
    open_vectors,
)
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.json_files import checked, read_bytes

DATASET = "dataset.npy"
"""Where ScaNN keeps the vectors as they were given."""
ASSETS = "scann_assets.pbtxt"
"""Where ScaNN lists an index's other files."""
MAX_ASSETS = 1 << 16
"""Bytes of that list; it names less than ten files."""

HASH_FROM, TREE_FROM = 20_000, 100_000
"""Numbers of vectors from which hashing, and a tree before it, pay off by ScaNN's guidelines."""
TRAINED_ON = 250_000
TUNED_LEAVES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
TUNED_REORDER = (1, 2, 4, 8, 16)
"""Multiples of k."""


def _scann() -> ModuleType:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise RunError(
            "ScaNN is not installed (it has wheels for Linux only); use the exact index"
        ) from error
    return scann_ops_pybind


@dataclass(frozen=True)
class ScannSettings:
    """How ScaNN is built and searched; `of` chooses by size."""

    leaves: int = 0
    """Parts of the tree; 0 for none."""
    searched: int = 0
    """Leaves that a query searches."""
    hashed: bool = False
    """Score by asymmetric hashing first; otherwise all vectors are compared."""
    reorder: int = 0
    """How many of the best by hashed score are rescored exactly."""

    @classmethod
    def of(cls, count: int) -> ScannSettings:
        """By ScaNN's guidelines: brute force, hashing, or a tree of sqrt(n) leaves and hashing."""
        if count < HASH_FROM:
            return cls()
        if count < TREE_FROM:
            return cls(hashed=True, reorder=200)
        leaves = int(np.sqrt(count))
        return cls(leaves, max(leaves // 20, 1), hashed=True, reorder=200)


class ScannIndex:
    """Asymmetric hashing with exact reordering, after a tree if there are enough vectors.

    Args:
        ids: one per vector.
        vectors: [n d].
        embedder: identity of the embedder.
        settings: chosen by size if None.
    """

    kind = "scann"

    def __init__(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        embedder: str = "",
        settings: ScannSettings | None = None,
    ):
        check_new(ids)
        vectors = np.ascontiguousarray(check_vectors(ids, vectors))
        settings = settings or ScannSettings.of(len(ids))
        searcher = _build(vectors, settings).searcher
        self._hold(list(ids), searcher, embedder, settings, vectors.shape[1])

    def _hold(
        self, ids: list[str], searcher: Any, embedder: str, settings: ScannSettings, dim: int
    ) -> None:
        self._ids, self.embedder, self.settings, self._dim = ids, embedder, settings, dim
        self._names: np.ndarray | None = None
        # One finds and is saved by place; the other keeps the ids in step with changes.
        self._searcher = _scann().ScannSearcher(searcher)
        self._named = _scann().ScannSearcher(searcher, self._ids)

    @property
    def ids(self) -> list[str]:
        """Ids by place; the last id takes the place of a deleted one."""
        return self._ids

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """See `Index.search`."""
        return self._search(np.asarray(queries, np.float32), min(k, len(self)), self.settings)

    def _search(self, queries: np.ndarray, k: int, how: ScannSettings) -> SearchResult:
        if not len(queries) or not k:
            shape = (len(queries), k)
            nothing = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
            return SearchResult(*nothing, np.empty(0, object))
        found, scores = self._searcher.search_batched_parallel(
            np.ascontiguousarray(queries),
            final_num_neighbors=k,
            pre_reorder_num_neighbors=max(how.reorder, k) if how.hashed else None,
            leaves_to_search=how.searched or None,
        )
        places = np.asarray(found).astype(np.int32)
        scores = np.asarray(scores, np.float32)
        # If the searched leaves hold fewer than k vectors, the last places are empty.
        places = np.where(np.isfinite(scores), places, 0)
        if self._names is None:
            self._names = np.array(self._ids, object)
        return SearchResult(places, scores, self._names)

    def tune(self, queries: np.ndarray, exact: np.ndarray, target: float) -> float:
        """Choose the fastest settings whose recall on some queries reaches a target.

        The tree and the hashes do not change; only the number of searched leaves and of exactly
        scored candidates is chosen. Each setting is timed once.

        Args:
            queries: [q d]; none of those that are measured later.
            exact: places of their true k nearest, int [q k], as an exact index over the same
                vectors gives them.
            target: mean share of the k that must be found.

        Returns:
            The recall that was reached.

        Raises:
            RunError: no setting reaches it.
        """
        k = exact.shape[1]
        best: tuple[float, float, ScannSettings] | None = None
        for settings in _candidates(self.settings, k):
            if best is not None and settings.searched > 2 * best[2].searched:
                break  # Only slower ones follow.
            began = time.perf_counter()
            found = self._search(queries, k, settings).positions
            seconds = time.perf_counter() - began
            recall = recall_of(found, exact)
            if recall >= target and (best is None or seconds < best[0]):
                best = (seconds, recall, settings)
        if best is None:
            raise RunError(
                f"no ScaNN setting finds {target:.3f} of the {k} nearest here; lower the target "
                "or use the exact index"
            )
        self.settings = best[2]
        return best[1]

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """See `Index.add`; new vectors go to the leaves and hashes that were trained before."""
        check_new(ids, self._named.docid_to_id)
        vectors = check_vectors(ids, vectors, dim=self._dim)
        self._names = None
        self._named.upsert(list(ids), np.ascontiguousarray(vectors), batch_size=len(ids))

    def delete(self, ids: Sequence[str]) -> None:
        """See `Index.delete`."""
        check_known(ids, self._named.docid_to_id)
        self._names = None
        self._named.delete(list(ids))

    def save(self, folder: Path) -> None:
        """See `Index.save`."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            # ScaNN stores the paths of its parts; relative ones survive a move.
            self._searcher.serialize(str(temporary.absolute()), relative_path=True)
            about = IndexFile("scann", self.embedder, self._ids, dim=self._dim)
            replace(about, settings=asdict(self.settings)).write(temporary)

    @classmethod
    def load(cls, folder: Path, about: IndexFile) -> ScannIndex:
        """Read what `save` wrote.

        Raises:
            RunError: an older version wrote it, or its files are not those of such an index.
        """
        if about.settings is None or about.dim is None:
            raise RunError(f"{folder} was written by an older version; embed the catalogue again")
        where = folder / NAME
        settings = checked(ScannSettings, about.settings, where, remedy=AGAIN)
        open_vectors(folder / DATASET, np.float32, len(about.ids))
        index = cls.__new__(cls)
        try:
            # Its `load_searcher` would also unpickle a file of the folder, and write one.
            native = _scann().scann_pybind.ScannNumpy
            searcher = native(str(folder.absolute()), _assets(folder))
        except RunError:
            raise
        except Exception as error:  # ScaNN raises whatever its parsers do.
            raise RunError(f"{folder} holds no ScaNN index ({error}); {AGAIN}") from error
        index._hold(about.ids, searcher, about.embedder, settings, about.dim)
        return index


def _assets(folder: Path) -> str:
    """ScaNN's list of the index's other files, which lie in its folder.

    Raises:
        RunError: the list is missing or too long, or names a file elsewhere.
    """
    from google.protobuf import text_format
    from scann.scann_ops.scann_assets_pb2 import ScannAssets

    text = read_bytes(folder / ASSETS, limit=MAX_ASSETS, remedy=AGAIN).decode()
    for name in (x.asset_path for x in text_format.Parse(text, ScannAssets()).assets):
        if PurePath(name).name != name or name in ("", "..") or not (folder / name).is_file():
            raise RunError(f"{folder / ASSETS} names {name!r}, no file of its folder; {AGAIN}")
    return text


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the true nearest, int [q k], among those found, int [q k]."""
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    return float(np.mean(shared)) / exact.shape[1]


def _candidates(now: ScannSettings, k: int) -> list[ScannSettings]:
    """Settings of a built searcher in which a query searches more and more."""
    if not now.hashed:
        return [now]
    leaves = [*(n for n in TUNED_LEAVES if n < now.leaves), now.leaves]
    return [
        replace(now, searched=searched, reorder=times * k)
        for searched in leaves
        for times in TUNED_REORDER
    ]


def _build(vectors: np.ndarray, settings: ScannSettings) -> Any:
    count = len(vectors)
    builder = _scann().builder(vectors, min(10, count), "dot_product")
    if settings.leaves:
        builder = builder.tree(
            num_leaves=settings.leaves,
            num_leaves_to_search=settings.searched,
            training_sample_size=min(count, TRAINED_ON),
        )
    if not settings.hashed:
        return builder.score_brute_force().build()
    # Two dimensions per code, and the threshold, as in ScaNN's benchmark.
    hashed = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    return hashed.reorder(settings.reorder).build()
