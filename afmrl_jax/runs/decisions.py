"""What a person decided about pairs of listings, and a catalogue with other product ids by it."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.joined import JoinedCatalogue, free_name
from afmrl_jax.data.catalogue.readers import RowSource
from afmrl_jax.data.catalogue.records import SPLITS, Report, Row
from afmrl_jax.data.catalogue.splits import linked
from afmrl_jax.errors import AfmrlError
from afmrl_jax.types import JsonObject

SAME, DIFFERENT = "same", "different"
COLUMNS = ("left_id", "right_id", "decision")
REMEDY = f"a file of decisions has the columns {', '.join(COLUMNS)}, as review.csv"


@dataclass(frozen=True)
class Decision:
    """Whether two listings are one product, by a person."""

    left: str
    right: str
    same: bool
    line: int


def read_decisions(path: Path) -> list[Decision]:
    """The rows of a file of pairs that have a decision; those without are left out.

    Args:
        path: CSV in UTF-8 with the columns left_id, right_id and decision (`same`, `different`, or
            empty), and any others.

    Raises:
        AfmrlError: the file cannot be read, has other columns, or a row says something else; it
            names the line.
    """
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise AfmrlError(f"{path} has no column {sorted(missing)[0]!r}; {REMEDY}")
            for row in reader:
                said = (row["decision"] or "").strip().lower()
                if not said:
                    continue
                if said not in (SAME, DIFFERENT) or not (row["left_id"] and row["right_id"]):
                    raise AfmrlError(
                        f"{path}, line {reader.line_num}: the decision {said[:40]!r} is neither "
                        f"`{SAME}` nor `{DIFFERENT}`, or a listing is missing; correct the line"
                    )
                found.append(
                    Decision(row["left_id"], row["right_id"], said == SAME, reader.line_num)
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AfmrlError(f"{path} cannot be read ({error}); {REMEDY}") from error
    return found


class Labels:
    """Product, family and split of each listing after some decisions.

    Listings that were decided to be the same become one product, and so do their products. A
    product of which two listings were decided to be different is divided: its listings are joined
    again, the most alike first, as long as that joins nothing that was decided to be different.
    Families that share a product become one, in the split that most of their listings have.

    Args:
        catalogue: the listings.
        decisions: of a person; `left` is a listing of the first catalogue, `right` of the last.
        likeness: gives the likeness of pairs of places, int [n] and int [n] to float [n].

    Raises:
        AfmrlError: a decision is about an unknown listing, or two contradict each other; it names
            the line.
    """

    def __init__(
        self,
        catalogue: JoinedCatalogue,
        decisions: Sequence[Decision],
        likeness: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ):
        self._products: list[str] = catalogue.column("product_id")
        self._sets = DisjointSet(range(len(self._products)))
        pairs = [(*_places(catalogue, x), x) for x in decisions]
        for one, other, x in pairs:
            if x.same:
                self._sets.merge(one, other)
        self._apart = {(one, other) for one, other, x in pairs if not x.same}
        for one, other, x in pairs:
            if not x.same and self._sets.connected(one, other):
                raise AfmrlError(
                    f"line {x.line} says that {x.left!r} and {x.right!r} are different, but other "
                    "lines say that they are the same, directly or through others; correct one"
                )
        self._rejoin_products(likeness)
        self.products = self._named()
        self.families, self.splits = _families(catalogue, self.products)
        self._renamed = dict(zip(self._products[::-1], self.products[::-1], strict=True))

    def _rejoin_products(self, likeness: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Join the listings of each product, except what was decided to be different."""
        members = defaultdict[str, list[int]](list)
        for n, name in enumerate(self._products):
            members[name].append(n)
        roots = {self._sets[n] for pair in self._apart for n in pair}
        free = {name for name, x in members.items() if not any(self._sets[n] in roots for n in x)}
        # First: what these join can then only be held apart by the others.
        for name in free:
            for n in members[name][1:]:
                self._sets.merge(members[name][0], n)
        for name, places in members.items():
            if name in free:
                continue
            own = np.array(places)
            one, other = np.triu_indices(len(own), 1)
            order = np.argsort(-likeness(own[one], own[other]), kind="stable")
            for a, b in zip(own[one][order].tolist(), own[other][order].tolist(), strict=True):
                if self._may_join(a, b):
                    self._sets.merge(a, b)

    def _may_join(self, one: int, other: int) -> bool:
        roots = {self._sets[one], self._sets[other]}
        return len(roots) == 1 or not any(
            {self._sets[a], self._sets[b]} == roots for a, b in self._apart
        )

    def _named(self) -> list[str]:
        """Each group has the product id of its first listing, or a new one if that is taken."""
        names: dict[int, str] = {}
        taken, everything = set[str](), set(self._products)
        out = []
        for n, product in enumerate(self._products):
            root = self._sets[n]
            if root not in names:
                name = free_name(product, everything | taken) if product in taken else product
                names[root] = name
                taken.add(name)
            out.append(names[root])
        return out

    @property
    def identity(self) -> str:
        """A hash of all labels."""
        told = json.dumps([self.products, self.families, self.splits])
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def changed(self) -> JsonObject:
        """How many listings have another product id, and how many products were joined and made."""
        before, after = self._products, self.products
        sources = defaultdict[str, set[str]](set)
        parts = defaultdict[str, set[str]](set)
        for old, new in zip(before, after, strict=True):
            sources[new].add(old)
            parts[old].add(new)
        return {
            "listings": sum(a != b for a, b in zip(before, after, strict=True)),
            "products_before": len(parts),
            "products_after": len(sources),
            "merged": sum(len(x) > 1 for x in sources.values()),
            "split": sum(len(x) > 1 for x in parts.values()),
        }

    def row(self, place: int, row: Mapping[str, object]) -> Mapping[str, object]:
        """A raw record with the new product, family and split of its listing."""
        changed: dict[str, object] = {
            "product_id": self.products[place],
            "family_id": self.families[place],
            "split": self.splits[place],
        }
        if true := row.get("duplicate_of"):
            changed["duplicate_of"] = self._renamed.get(str(true), true)
        return {**row, **changed}


def _places(catalogue: JoinedCatalogue, x: Decision) -> tuple[int, int]:
    """Where the listings of a decision are."""
    found = []
    for name, part in ((x.left, 0), (x.right, len(catalogue.parts) - 1)):
        place = catalogue.place(part, name)
        if place is None:
            raise AfmrlError(
                f"the decision of line {x.line} is about listing {name!r}, which the catalogue "
                f"{catalogue.parts[part].name} has not; remove the line, or give the catalogue it "
                "was made for"
            )
        found.append(place)
    return found[0], found[1]


def _families(
    catalogue: JoinedCatalogue, products: Sequence[str]
) -> tuple[list[str | None], list[str]]:
    """Family of each listing, where it has one, and split, after products have changed."""
    families: list[str | None] = catalogue.column("family_id")
    splits: list[str] = catalogue.column("split")
    groups = [f or f"product {p}" for f, p in zip(families, products, strict=True)]
    first = linked(groups, list(products))
    roots = [first[x] for x in groups]
    votes = defaultdict[str, list[int]](lambda: [0] * len(SPLITS))
    for root, split in zip(roots, splits, strict=True):
        votes[root][SPLITS.index(split)] += 1
    chosen = {root: SPLITS[int(np.argmax(count))] for root, count in votes.items()}
    with_family = {root for root, f in zip(roots, families, strict=True) if f is not None}
    named = [root if root in with_family else None for root in roots]
    return named, [chosen[x] for x in roots]


def write_labelled(
    sources: Sequence[RowSource], catalogue: JoinedCatalogue, labels: Labels, out: Path
) -> None:
    """Write the listings with their new product ids as a store, which `afmrl train` takes.

    Args:
        sources: of the catalogues: what is unfinished is of no use once their files change.
        catalogue: the listings; records that were left out are left out again.
        labels: of the listings.
        out: folder; an earlier one is replaced.
    """

    def read(report: Report) -> Iterator[Row]:
        for place, (where, row) in enumerate(catalogue.rows()):
            yield where, labels.row(place, row)

    if out.is_dir():
        shutil.rmtree(out)
    told = {"decided": labels.identity, "files": [x.stamp for x in sources]}
    first = sources[0]
    labelled = RowSource(
        catalogue.name, first.file, first.folder, read, len(labels.products), options=told
    )
    convert(labelled, out, Conversion(decode_pictures=False))


def kept_rows(
    rows: Iterable[JsonObject],
    decisions: Sequence[Decision],
    names: Sequence[str],
    *,
    ordered: bool = False,
) -> Iterator[list[object]]:
    """Rows of a new review file, those with a decision first, so that none is lost.

    Args:
        rows: pairs to review, with `left_id` and `right_id`.
        decisions: what was decided before.
        names: columns.
        ordered: left and right are of two catalogues, so that a pair and its reverse are two.
    """

    def key(left: str, right: str) -> object:
        return (left, right) if ordered else frozenset((left, right))

    known = {key(x.left, x.right): x for x in decisions}
    for x in known.values():
        row = {"left_id": x.left, "right_id": x.right, "decision": SAME if x.same else DIFFERENT}
        yield [row.get(name, "") for name in names]
    for pair in rows:
        if key(pair["left_id"], pair["right_id"]) not in known:
            yield [pair.get(name, "") for name in names]
