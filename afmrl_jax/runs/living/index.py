"""An embedded catalogue with the changes of its log: searched, filtered, added to, removed from."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.errors import RunError
from afmrl_jax.models.embedder import UNIT_TOLERANCE
from afmrl_jax.retrieval.index import as_float, open_index, stored_vectors
from afmrl_jax.retrieval.index_file import IndexFile
from afmrl_jax.runs.embedded import (
    ABOUT,
    INDEX,
    LOG,
    About,
    EmbeddedListings,
    EmbeddedThumbnails,
    shown_of,
)
from afmrl_jax.runs.living.changes import (
    REMEDY,
    Change,
    Entry,
    check_first,
    decoded,
    encoded,
    first_record,
)
from afmrl_jax.runs.living.delta import Delta
from afmrl_jax.runs.living.filters import FIELDS, Column, Where, cell_of, unknown_column
from afmrl_jax.runtime.outputs import only_writer
from afmrl_jax.runtime.record_log import RecordLog
from afmrl_jax.types import JsonObject

Hits = list[tuple[str, float]]
"""Ids and cosines, best first."""
PART = 65_536
"""Vectors of a filtered search that are in memory at a time."""
COLUMNS = 32
"""Names whose columns are kept for filters."""
SAMPLE = 1000
"""Listings whose columns are named when a filter names none."""


class LivingIndex:
    """An embedded catalogue, and what came and went since it was written.

    Args:
        folder: of the catalogue.
        embedder: identity that it must have; None for any.
        mesh: devices that share the vectors of an exact index; None for one device.
        writer: name of the command that will change it; None to read only. One process may write,
            any number read what was there when they opened it.

    Raises:
        RunError: the folder or its log is damaged, another embedder made it, or another process
            writes it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        embedder: str | None = None,
        mesh: Mesh | None = None,
        writer: str | None = None,
    ):
        self.folder = folder = Path(folder).absolute()
        self._held, self._writer, self._lock = ExitStack(), writer, threading.RLock()
        try:
            if writer is not None and (folder / ABOUT).is_file():
                self._held.enter_context(only_writer(folder, writer))
            self.about = About.read(folder)
            about = IndexFile.read(folder / INDEX, embedder=embedder)
            self.kind, self.dtype = about.kind, about.dtype
            # ScaNN moves places when vectors are deleted; those of the files stay.
            self._place = {x: n for n, x in enumerate(about.ids)}
            self._ids = np.array(about.ids, object)
            self._base = open_index(folder / INDEX, about, mesh)
            self._stored = stored_vectors(folder / INDEX, about)
            self._alive = np.ones(len(self._ids), bool)
            self._listings = EmbeddedListings(folder, about.ids)
            small = self.about.thumbnails is not None
            self._thumbnails = EmbeddedThumbnails(folder) if small else None
            self._delta = Delta(self.dim, self.dtype)
            self._log = RecordLog(folder / LOG, remedy=REMEDY)
            self._column = lru_cache(COLUMNS)(self._read_column)
            self._replay()
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> LivingIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log and let other processes write."""
        with self._lock:
            self._log.close()
            self._held.close()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._stored.shape[1])

    @property
    def stored_ids(self) -> np.ndarray:
        """Ids of the folder's vectors, objects [n], those that are no longer valid included."""
        return self._ids

    @property
    def log(self) -> RecordLog:
        """Its log."""
        return self._log

    @property
    def counts(self) -> dict[str, int]:
        """Listings in all, those of the folder that are still valid, and those of the log."""
        with self._lock:
            base = len(self._place)
            return {"listings": base + len(self._delta), "base": base, "added": len(self._delta)}

    def __len__(self) -> int:
        return self.counts["listings"]

    def __contains__(self, listing_id: str) -> bool:
        with self._lock:
            return listing_id in self._delta or listing_id in self._place

    def entries(self) -> Iterator[Entry]:
        """All listings: those of the folder in its order, then those of the log in theirs."""
        for listing_id, place in self._place.items():
            yield self._stored_entry(listing_id, place)
        yield from self._delta

    def entry(self, listing_id: str) -> Entry:
        """A listing with its vector and thumbnail.

        Raises:
            RunError: there is none of that id.
        """
        with self._lock:
            if listing_id in self._delta:
                return self._delta[listing_id]
            place = self._place.get(listing_id)
            if place is None:
                raise RunError(f"the index has no listing {listing_id!r}")
            return self._stored_entry(listing_id, place)

    def line(self, listing_id: str) -> JsonObject:
        """What is known of a listing; see `entry`."""
        with self._lock:
            if listing_id in self._delta:
                return self._delta[listing_id].line
            if listing_id not in self._place:
                raise RunError(f"the index has no listing {listing_id!r}")
            return self._listings[self._place[listing_id]]

    def lines(self, most: int) -> list[JsonObject]:
        """What is known of some listings: the first ones of the folder, and of its log."""
        with self._lock:
            places = list(islice(self._place.values(), most))
            new = [x.line for x in islice(self._delta, most - len(places))]
            return [*(self._listings[x] for x in places), *new]

    def _stored_entry(self, listing_id: str, place: int) -> Entry:
        line = self._listings[place]
        small = None if self._thumbnails is None else self._thumbnails.of(line)
        return Entry(line, as_float(self._stored[place]), small)

    def _replay(self) -> None:
        gone, path = dict[str, int](), self._log.path
        for number, (_, record) in enumerate(self._log.read(), 1):
            where = f"{path}: record {number}"
            if number == 1:
                check_first(record, self.about.identity, where)
                continue
            change = decoded(record, where, self.dim)
            gone |= self._apply(change)
        self._hide(gone)

    def _apply(self, change: Change) -> dict[str, int]:
        """Bring a change into memory, and give the folder's listings that are no longer valid, with
        their places.
        """
        gone = dict[str, int]()
        for x in [*change.removed, *(x.listing_id for x in change.put)]:
            self._delta.discard(x)
            if (place := self._place.pop(x, None)) is not None:
                gone[x] = place
        self._delta.put(change.put)
        return gone

    def _hide(self, gone: dict[str, int]) -> None:
        """Leave listings of the folder out of searches."""
        self._alive[list(gone.values())] = False
        if gone and self._place:  # An index cannot be without any vector.
            self._base.delete(list(gone))

    def put(self, entries: Sequence[Entry]) -> None:
        """Add listings, or replace those of the same ids; on disk when this returns.

        Raises:
            RunError: an id is repeated, a vector does not fit, or the log cannot be written; then
                nothing has changed.
        """
        repeated = [x for x, n in Counter(x.listing_id for x in entries).items() if n > 1]
        if repeated:
            raise RunError(f"listing {repeated[0]!r} is repeated; give it once")
        for x in entries:
            fits = x.vector.shape == (self.dim,) and np.isfinite(x.vector).all()
            if not fits or abs(float(np.linalg.norm(x.vector)) - 1) > UNIT_TOLERANCE:
                raise RunError(
                    f"the vector of listing {x.listing_id!r} is no unit vector of {self.dim}; "
                    "embed it with the embedder of the index"
                )
        self._write(Change(put=entries))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove listings; on disk when this returns.

        Raises:
            RunError: an id is repeated or unknown, or the log cannot be written; then nothing has
                changed.
        """
        with self._lock:
            for x, n in Counter(ids).items():
                if n > 1 or x not in self:
                    what = "is repeated" if n > 1 else "is not in the index"
                    raise RunError(f"listing {x!r} {what}; nothing was removed")
            self._write(Change(removed=ids))

    def _write(self, change: Change) -> None:
        if self._writer is None:
            raise RunError(f"{self.folder} was opened to be read only")
        record = encoded(change)
        with self._lock:
            if not (change.put or change.removed):
                return
            if not self._log.count:
                self._log.append(first_record(self.about.identity))
            self._log.append(record)
            self._hide(self._apply(change))

    def search(self, queries: np.ndarray, k: int, where: Where = ()) -> list[Hits]:
        """The k nearest of each query [q d], fewer where fewer fit.

        Args:
            queries: unit vectors, float32.
            k: 1 or more.
            where: conditions that all hits fit.

        Raises:
            InputError: no listing has a column of a condition.
        """
        queries = np.asarray(queries, np.float32)
        with self._lock:
            if where:
                base, chosen = self._filtered(where)
                found, new = (
                    self._compared(queries, k, base),
                    self._delta.search(queries, k, chosen),
                )
            else:
                found, new = self._nearest(queries, k), self._delta.search(queries, k)
        # Equals come in the order of the index: those of the log last.
        return [sorted(a + b, key=lambda x: -x[1])[:k] for a, b in zip(found, new, strict=True)]

    def _nearest(self, queries: np.ndarray, k: int) -> list[Hits]:
        if not self._place:
            return [[] for _ in queries]
        found = self._base.search(queries, k)
        scores = found.scores.tolist()
        return [list(zip(*x, strict=True)) for x in zip(found.ids, scores, strict=True)]

    def _filtered(self, where: Where) -> tuple[np.ndarray, np.ndarray]:
        """Places of the folder's listings that fit, and which of the log's do."""
        new = [None if x is None else x.line for x in self._delta.entries]
        base, chosen = self._alive.copy(), np.ones(len(new), bool)
        for condition in where:
            column = self._column(condition.name)
            cells = [None if x is None else cell_of(x, condition.name) for x in new]
            if not column.there.any() and all(x is None for x in cells):
                lines = [self._listings[n] for n in range(min(SAMPLE, len(self._listings)))]
                raise unknown_column(condition.name, [*lines, *(x.line for x in self._delta)])
            base &= condition.fit(column)
            chosen &= condition.fit(Column.of(cells))
        return np.flatnonzero(base), chosen

    def _read_column(self, name: str) -> Column:
        if name == FIELDS[0]:
            return Column.of(self._ids.tolist())
        return Column.of([cell_of(self._listings[n], name) for n in range(len(self._listings))])

    def _compared(self, queries: np.ndarray, k: int, places: np.ndarray) -> list[Hits]:
        """The k nearest of each query among some places, every vector compared."""
        best = [np.zeros(0, np.float32) for _ in queries]
        at = [np.zeros(0, np.int64) for _ in queries]
        for begin in range(0, len(places), PART):
            part = places[begin : begin + PART]
            scores = queries @ as_float(self._stored[part]).T
            for n, row in enumerate(scores):
                both, where = np.concatenate([best[n], row]), np.concatenate([at[n], part])
                order = np.argsort(-both, kind="stable")[:k]
                best[n], at[n] = both[order], where[order]
        return [
            list(zip(self._ids[where].tolist(), scores.tolist(), strict=True))
            for scores, where in zip(best, at, strict=True)
        ]

    def shown(self, listing_id: str) -> JsonObject:
        """What results show of a listing; see `entry`."""
        return shown_of(self.line(listing_id))
