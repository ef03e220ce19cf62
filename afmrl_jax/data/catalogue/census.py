"""What only a whole catalogue shows, counted by SQLite in bounded memory."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from afmrl_jax.data.catalogue.records import SPLITS, Listing, Problem
from afmrl_jax.data.catalogue.splits import draw_splits
from afmrl_jax.errors import CatalogueError
from afmrl_jax.types import JsonObject

COVERED = (
    "category", "attributes", "oracle", "seller", "family_id", "duplicate_of", "duplicate_group",
    "role", "part",
)  # fmt: skip

SEVERAL = "several pictures"
"""What is counted of listings with more than one."""
MAX_COLUMNS = 1000
"""Columns besides a listing's that are counted by name."""
NAMED = 20
"""How many columns that are left out a warning names."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS listing (
    listing_id TEXT PRIMARY KEY, product TEXT, family TEXT, duplicates TEXT, split TEXT,
    taught INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS together (name TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shard (
    number INTEGER PRIMARY KEY, consumed INTEGER, listings INTEGER, files TEXT
);
CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class Census:
    """The ids of a catalogue's listings, and what they have in common.

    In memory for a catalogue that is loaded; for one that is checked or converted, in a file that
    `commit` saves.
    """

    def __init__(self, path: Path | None = None):
        self.db = sqlite3.connect(":memory:" if path is None else path)
        # A killed process loses what was not committed; a power cut may lose the conversion.
        self.db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {SCHEMA}")
        self._covered, self._carried, self._left = (
            Counter[str](json.loads(self.note(name) or "{}"))
            for name in ("covered", "carried", "left")
        )

    def close(self) -> None:
        """Close the database and drop what was not committed."""
        self.db.close()

    def note(self, name: str) -> str | None:
        """A note that was committed, or None."""
        found = self.db.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def commit(self, **notes: str) -> None:
        """Save what was taken, together with some notes."""
        counts = {"covered": self._covered, "carried": self._carried, "left": self._left}
        notes |= {name: json.dumps(count) for name, count in counts.items()}
        self.db.executemany("INSERT OR REPLACE INTO note VALUES (?, ?)", notes.items())
        self.db.commit()

    def take(self, x: Listing, left: Mapping[str, str] | None = None) -> None:
        """Count a listing in.

        Args:
            x: the listing.
            left: columns of its record that it does not carry, and why.

        Raises:
            CatalogueError: it conflicts with those before it, and is not counted. The message is
                "what is wrong; the remedy".
        """
        run = self.db.execute
        known = run("SELECT 1 FROM listing WHERE listing_id = ?", (x.listing_id,)).fetchone()
        if known:
            raise CatalogueError("the listing id occurs twice; give every listing a unique id")
        names = [x.group] + ([f"duplicate group {x.duplicate_group}"] if x.duplicate_group else [])
        for name in names:
            found = run("SELECT split FROM together WHERE name = ?", (name,)).fetchone()
            # Splits for only some of the listings are refused when all are known.
            if found and None not in (found[0], x.split) and found[0] != x.split:
                raise CatalogueError(
                    f"{name} is in split {found[0]!r} and in {x.split!r}; keep all listings of a "
                    "family, and of a duplicate group, in one split"
                )
        for name in names:
            run("INSERT OR IGNORE INTO together VALUES (?, ?)", (name, x.split))
        taught = x.attributes is not None or x.oracle is not None
        values = (x.listing_id, x.product_id, x.group, x.duplicate_group, x.split, taught)
        run("INSERT INTO listing VALUES (?, ?, ?, ?, ?, ?)", values)
        self._covered.update(name for name in COVERED if getattr(x, name) is not None)
        self._covered.update([SEVERAL] if x.more_images else ())
        _count_some(self._carried, x.extra or ())
        _count_some(self._left, (f"{name!r} ({why})" for name, why in (left or {}).items()))

    def _count(self, what: str, rest: str = "") -> int:
        return int(self.db.execute(f"SELECT {what} FROM listing {rest}").fetchone()[0])

    def __len__(self) -> int:
        return self._count("COUNT(*)")

    def refuse(self, file: str) -> None:
        """Check what no single listing shows.

        Raises:
            CatalogueError: fewer than two products, or splits for only some of the listings.
        """
        products = self._count("COUNT(DISTINCT product)")
        if products < 2:
            raise CatalogueError(
                f"{file} holds {products} usable product(s); retrieval needs at least two"
            )
        without = self._count("COUNT(*)", "WHERE split IS NULL")
        if 0 < without < len(self):
            first = "SELECT listing_id FROM listing WHERE split IS NULL LIMIT 1"
            raise CatalogueError(
                f"{file}: listing {self.db.execute(first).fetchone()[0]!r} and {without - 1} more "
                "have no split while others have one; give all a split or none"
            )

    def draw_splits(self) -> None:
        """Give every listing the split that a run would draw, if the catalogue has none."""
        if not self._count("COUNT(*)", "WHERE split IS NULL"):
            return
        pairs = self.db.execute("SELECT DISTINCT family, duplicates FROM listing").fetchall()
        splits = draw_splits([x for x, _ in pairs], [x for _, x in pairs])
        self.db.execute("CREATE TEMP TABLE drawn (name TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID")
        self.db.executemany("INSERT INTO drawn VALUES (?, ?)", splits.items())
        self.db.execute(
            "UPDATE listing SET split = (SELECT split FROM drawn WHERE name = listing.family)"
        )

    def warnings(self, file: str) -> list[Problem]:
        """Problems that do not stop a run."""
        out = []
        products = self._count("COUNT(DISTINCT product)")
        alone = self.db.execute(
            "SELECT COUNT(*) FROM (SELECT 1 FROM listing GROUP BY product HAVING COUNT(*) = 1)"
        ).fetchone()[0]
        if alone:
            what = f"{alone} of {products} products have only one listing, so nothing to find"
            remedy = "they serve only as distractors; add a second listing where there is one"
            out.append(Problem("catalogue", file, what, remedy, "warning"))
        if not self._count("COUNT(*)", "WHERE taught AND split = 'distill'"):
            what = "no listing of the distill split has attributes or an oracle text"
            out.append(Problem("catalogue", file, what, "distillation needs either", "warning"))
        if self._left:
            named = ", ".join(f"{x} in {n}" for x, n in self._left.most_common(NAMED))
            more = f" and {len(self._left) - NAMED} more" if len(self._left) > NAMED else ""
            what = f"columns that are read by nothing and not shown in results: {named}{more}"
            remedy = "results show texts, numbers and truth values; a map (--columns) names others"
            out.append(Problem("catalogue", file, what, remedy, "warning"))
        return out

    def summary(self) -> JsonObject:
        """Counts of listings, products and families, by split, and how many have each field.

        Columns that are not a listing's, and are carried to results, are under `carried`.
        """

        def counts(rest: str = "") -> dict[str, int]:
            return {
                "listings": self._count("COUNT(*)", rest),
                "products": self._count("COUNT(DISTINCT product)", rest),
                "families": self._count("COUNT(DISTINCT family)", rest),
            }

        total = len(self)
        coverage = {x: round(self._covered[x] / total, 3) for x in COVERED} if total else {}
        if self._covered[SEVERAL]:
            coverage[SEVERAL] = round(self._covered[SEVERAL] / total, 3)
        splits = {split: counts(f"WHERE split = '{split}'") for split in SPLITS}
        found = {**counts(), "splits": splits, "coverage": coverage}
        if self._carried:
            found["carried"] = {x: round(n / total, 3) for x, n in self._carried.items()}
        return found


def _count_some(counts: Counter[str], names: Iterable[str]) -> None:
    """Count names, new ones only up to `MAX_COLUMNS`: a file may have others in every line."""
    counts.update(x for x in names if x in counts or len(counts) < MAX_COLUMNS)
