"""Exact search: every query against every vector, on one device or a mesh, or streamed to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import DTypeLike

from afmrl_jax.errors import RunError
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.retrieval.index_file import IndexFile
from afmrl_jax.retrieval.top_k import Best, padded_rows, search_part
from afmrl_jax.retrieval.types import (
    SearchResult,
    check_known,
    check_new,
    check_vectors,
    open_vectors,
)
from afmrl_jax.retrieval.vector_file import new_mapped
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.hardware import built_for

VECTORS = "vectors.npy"

PART_BYTES = 1 << 28
"""Bytes of vectors that are sent to the devices and searched at a time, unless all of them are."""
HELD_BYTES = 8 << 30
"""Bytes of vectors that stay on the devices, if these do not report their memory."""
QUERIES = (1, 8, 64, 256)
MANY_QUERIES = (1024, 4096)
"""Numbers of queries for which programs are compiled; many only where there is a device for them:
their scores would not stay in the caches of a CPU."""

Dtype = Literal["float32", "bfloat16"]
TYPES: dict[Dtype, DTypeLike] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


class ExactIndex:
    """Every vector is compared with every query.

    Vectors stay in memory, or in the file from which they are mapped. If all fit on the devices,
    they are kept there, on a GPU or TPU in one part; otherwise each search streams them in parts.

    Args:
        ids: one per vector.
        vectors: [n d]; may be memory-mapped.
        embedder: identity of the embedder.
        dtype: type of the vectors; scores are accumulated in float32.
        mesh: devices that share the vectors; None for one device.
        held_bytes: most bytes that stay on the devices; None for half of their memory.
    """

    kind = "exact"

    def __init__(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        embedder: str = "",
        *,
        dtype: Dtype = "float32",
        mesh: Mesh | None = None,
        held_bytes: int | None = None,
    ):
        check_new(ids)
        self._ids = list(ids)
        # The place of each id that is not deleted.
        self._place = {x: n for n, x in enumerate(ids)}
        self.embedder = embedder
        self.dtype = dtype
        self._mesh = mesh
        vectors = check_vectors(ids, vectors, TYPES[dtype])
        self._held_bytes = _budget(mesh) if held_bytes is None else held_bytes
        on_cpu = built_for() == "cpu"
        self._sizes = QUERIES if on_cpu else QUERIES + MANY_QUERIES
        self._part_rows = max(1, PART_BYTES // (vectors.shape[1] * vectors.itemsize))
        whole = not on_cpu and vectors.nbytes <= self._held_bytes
        size = max(len(vectors), 1) if whole else self._part_rows
        self._parts = [vectors[i : i + size] for i in range(0, len(vectors), size)]
        self._alive = np.ones(len(vectors), bool)
        self._held: dict[int, jax.Array] = {}
        self._held_alive: dict[int, jax.Array] = {}
        self._names: np.ndarray | None = None

    @property
    def ids(self) -> list[str]:
        """Ids in order of place, including those of deleted vectors."""
        return self._ids

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._parts[0].shape[1]

    def __len__(self) -> int:
        return int(self._alive.sum())

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """See `Index.add`."""
        check_new(ids, self._place)
        vectors = check_vectors(ids, vectors, TYPES[self.dtype], self.dim)
        self._place |= {x: n for n, x in enumerate(ids, len(self._ids))}
        self._ids += ids
        rest = vectors
        while len(rest):
            if len(self._parts[-1]) >= self._part_rows:
                self._parts.append(rest[:0])
            room = self._part_rows - len(self._parts[-1])
            self._parts[-1] = np.concatenate([self._parts[-1], rest[:room]])
            self._held.pop(len(self._parts) - 1, None)
            rest = rest[room:]
        self._alive = np.concatenate([self._alive, np.ones(len(vectors), bool)])
        self._held_alive.clear()
        self._names = None

    def delete(self, ids: Sequence[str]) -> None:
        """See `Index.delete`."""
        check_known(ids, self._place)
        self._alive[[self._place.pop(x) for x in ids]] = False
        self._held_alive.clear()

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """See `Index.search`; equal scores come in the order of the index."""
        # Not of those alive, whose number changes with every deletion: a program is compiled for k.
        asked, k = min(k, len(self)), min(k, len(self._alive))
        queries = np.asarray(queries, np.float32)
        scores = np.zeros((len(queries), k), np.float32)
        positions = np.zeros((len(queries), k), np.int32)
        most = self._sizes[-1]
        pending: deque[tuple[int, int, Best]] = deque()

        def take() -> None:
            begin, count, found = pending.popleft()
            scores[begin : begin + count] = np.asarray(found[0])[:count]
            positions[begin : begin + count] = np.asarray(found[1])[:count]

        for begin in range(0, len(queries) if asked else 0, most):
            part = queries[begin : begin + most]
            size = next(n for n in self._sizes if n >= len(part))
            padded = np.zeros((size, queries.shape[1]), np.float32)
            padded[: len(part)] = part
            pending.append((begin, len(part), self._best(padded, k)))
            # The devices have the next queries before the results of the last ones are fetched.
            if len(pending) > 1:
                take()
        while pending:
            take()
        if self._names is None:
            self._names = np.array(self._ids, object)
        return SearchResult(positions[:, :asked], scores[:, :asked], self._names)

    def _best(self, queries: np.ndarray, k: int) -> Best:
        best: Best | None = None
        offset = 0
        for number, part in enumerate(self._parts):
            vectors = self._on_devices(number)
            alive = self._alive_on_devices(number, offset, len(vectors))
            best = search_part(queries, vectors, alive, best, k, self._mesh, np.int32(offset))
            offset += len(part)
        assert best is not None, "search asks only where there is a vector"
        return best

    def _alive_on_devices(self, number: int, offset: int, rows: int) -> jax.Array:
        found = self._held_alive.get(number)
        if found is None:
            here = self._alive[offset : offset + len(self._parts[number])]
            found = self._put(np.pad(here, (0, rows - len(here))))
            self._held_alive[number] = found
        return found

    def _on_devices(self, number: int) -> jax.Array:
        found = self._held.get(number)
        if found is None:
            part = self._parts[number]
            rows = padded_rows(len(part), 1 if self._mesh is None else self._mesh.size)
            filled = np.zeros((rows, part.shape[1]), part.dtype)
            filled[: len(part)] = part
            found = self._put(filled)
            if sum(x.nbytes for x in self._parts) <= self._held_bytes:
                self._held[number] = found
        return found

    def _put(self, array: np.ndarray) -> jax.Array:
        if self._mesh is None:
            return jnp.asarray(array)
        return jax.device_put(array, NamedSharding(self._mesh, P(AXES)))

    def save(self, folder: Path) -> None:
        """See `Index.save`."""
        ids = [x for x, alive in zip(self.ids, self._alive, strict=True) if alive]
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            # NumPy's file format does not know bfloat16.
            kept = np.dtype(np.uint16 if self.dtype == "bfloat16" else np.float32)
            out = new_mapped(temporary / VECTORS, (len(ids), self.dim), kept)
            row = offset = 0
            for part in self._parts:
                chosen = part[self._alive[offset : offset + len(part)]]
                out[row : row + len(chosen)] = chosen.view(kept)
                row, offset = row + len(chosen), offset + len(part)
            out.flush()
            IndexFile("exact", self.embedder, ids, dtype=self.dtype).write(temporary)

    @classmethod
    def load(cls, folder: Path, about: IndexFile, mesh: Mesh | None = None) -> ExactIndex:
        """Read what `save` wrote; the vectors stay in their file until they are searched.

        Raises:
            RunError: `vectors.npy` does not hold a vector for each id.
        """
        kept = np.dtype(np.uint16 if about.dtype == "bfloat16" else np.float32)
        vectors = open_vectors(folder / VECTORS, kept, len(about.ids))
        if about.dtype == "bfloat16":
            vectors = vectors.view(ml_dtypes.bfloat16)
        try:
            return cls(about.ids, vectors, about.embedder, dtype=about.dtype, mesh=mesh)
        except RunError as error:
            raise RunError(f"{folder}: {error}") from error


def _budget(mesh: Mesh | None) -> int:
    devices = jax.local_devices()[:1] if mesh is None else mesh.devices.flat
    limits = [(x.memory_stats() or {}).get("bytes_limit") for x in devices]
    return sum(x // 2 if x else HELD_BYTES // len(limits) for x in limits)
