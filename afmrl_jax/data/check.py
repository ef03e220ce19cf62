"""What is wrong with a catalogue, record by record."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from afmrl_jax.data.catalogue import (
    assign_splits,
    check_whole,
    find_listings,
    read_catalogue_file,
    read_listings,
)
from afmrl_jax.data.records import SPLITS, Listing, Problem
from afmrl_jax.errors import CatalogueError


def check_catalogue(path: str | Path) -> tuple[list[Problem], dict[str, Any]]:
    """All problems of a catalogue, and a summary of what is usable.

    Every picture is decoded, and reading goes on behind each problem.
    """
    problems: list[Problem] = []
    if str(path) == "furniture":
        from afmrl_jax.data import furniture

        file = Path(furniture.__file__).parent / "listings.parquet"
        catalogue = read_catalogue_file(file, name="furniture", verify_pictures=False)
        return problems, summarise(list(catalogue.listings))
    file = find_listings(Path(path))
    listings = list(read_listings(file, problems.append, decode_pictures=True))
    try:
        listings = assign_splits(check_whole(listings, str(file), problems.append))
    except CatalogueError as error:
        what, _, remedy = str(error).rpartition("; ")
        problems.append(Problem("catalogue", str(file), what, remedy))
    problems += _warnings(listings, str(file))
    return problems, summarise(listings)


def _warnings(listings: list[Listing], file: str) -> list[Problem]:
    counts = Counter(x.product_id for x in listings)
    alone = sum(1 for n in counts.values() if n == 1)
    out = []
    if alone:
        what = f"{alone} of {len(counts)} products have a single listing, so nothing to find"
        remedy = "they serve as distractors only; add a second listing where there is one"
        out.append(Problem("catalogue", file, what, remedy, "warning"))
    taught = [x for x in listings if x.split == "distill" and (x.attributes or x.oracle)]
    if not taught:
        what = "no listing of the distill split has attributes or an oracle text"
        out.append(Problem("catalogue", file, what, "distillation needs either", "warning"))
    return out


def summarise(listings: list[Listing]) -> dict[str, Any]:
    """Counts of listings, products and families, by split, and how many have each field."""
    fields = (
        "category", "attributes", "oracle", "seller", "family_id", "duplicate_of",
        "duplicate_group",
    )  # fmt: skip
    return {
        "listings": len(listings),
        "products": len({x.product_id for x in listings}),
        "families": len({x.group for x in listings}),
        "splits": {
            split: {
                "listings": sum(x.split == split for x in listings),
                "products": len({x.product_id for x in listings if x.split == split}),
                "families": len({x.group for x in listings if x.split == split}),
            }
            for split in SPLITS
        },
        "coverage": {
            name: round(sum(getattr(x, name) is not None for x in listings) / len(listings), 3)
            for name in fields
        }
        if listings
        else {},
    }
