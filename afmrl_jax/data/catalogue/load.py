"""Reading catalogues: records become listings, checked one by one and together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from afmrl_jax.config import MarketplaceSettings, RunConfig
from afmrl_jax.config.marketplace import MARKETPLACE
from afmrl_jax.data.catalogue.census import Census
from afmrl_jax.data.catalogue.picture_check import checked_pictures
from afmrl_jax.data.catalogue.readers import RowSource, open_rows
from afmrl_jax.data.catalogue.records import SPLITS, Catalogue, Listing, Problem, Report
from afmrl_jax.data.catalogue.schema import left_columns, problem_of, to_listing
from afmrl_jax.data.catalogue.splits import draw_splits
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.terminal import printable

Look = Literal["decode", "open", "none"]
"""How closely pictures are checked: decoded, only their header read, or not at all."""


def load_catalogue(
    name_or_path: str | Path,
    *,
    skip_bad: bool = False,
    marketplace: MarketplaceSettings | None = None,
    columns: str | None = None,
) -> Catalogue:
    """A catalogue by name or folder, ready for a run.

    The listings of a store are read when they are needed; all others are kept in memory, with the
    paths of their pictures.

    Args:
        name_or_path: `furniture`, `marketplace` (drawn when it is first asked for, then kept in
            the user's cache), a folder, a table's file, or a data set of the Hugging Face hub; see
            `open_rows`.
        skip_bad: leave unusable records out (they are listed in `skipped`) instead of stopping.
            Pictures are then decoded here and not only opened, so that none fails later.
        marketplace: settings of the drawn marketplace, for other ones than the default.
        columns: which columns of a table are which, as in `title=name,product_id=sku`.

    Raises:
        CatalogueError: names the record, the file and the remedy.
    """
    options = None
    if marketplace is not None and str(name_or_path) == MARKETPLACE:
        options = dataclasses.asdict(marketplace)
    source = open_rows(name_or_path, options, columns)
    if source.store is not None:
        return Catalogue(source.name, source.store.listings())
    skipped: list[Problem] = []
    report = stopping(skipped.append, skip_bad=skip_bad)
    look: Look = "none" if source.trusted else "decode" if skip_bad else "open"
    with closing(Census()) as census:
        listings = [x.listing for x in read_listings(source, census, report, look=look)]
        census.refuse(source.file)
    return Catalogue(source.name, tuple(_with_splits(listings)), tuple(skipped))


def load_catalogue_of(config: RunConfig) -> Catalogue:
    """The catalogue of a run."""
    return load_catalogue(
        config.catalogue,
        skip_bad=config.skip_bad,
        marketplace=config.marketplace,
        columns=config.columns,
    )


def stopping(left_out: Report, *, skip_bad: bool) -> Report:
    """A report that logs warnings, and stops at the first error unless `skip_bad`.

    Args:
        left_out: called with the problem of each record that is left out.
        skip_bad: leave unusable records out.
    """

    def report(problem: Problem) -> None:
        if problem.severity == "warning":
            log_info(printable(f"warning: {problem}"))
        elif skip_bad:
            left_out(problem)
        else:
            raise CatalogueError(f"{problem} (--skip-bad leaves such records out)")

    return report


def say_skipped(catalogue: Catalogue) -> None:
    """Log every record that `skip_bad` left out, and their number."""
    for problem in catalogue.skipped:
        log_info(printable(f"left out: {problem}"))
    if catalogue.skipped:
        log_info(f"{len(catalogue.skipped)} record(s) left out (--skip-bad)")


class Read(NamedTuple):
    """A usable record."""

    number: int
    """Records read so far, including unusable ones."""
    listing: Listing
    pictures: tuple[bytes, ...]
    """Empty if they are not checked."""


def read_listings(
    source: RowSource, census: Census, report: Report, *, look: Look, begin: int = 0
) -> Iterator[Read]:
    """Usable records of a catalogue, one by one; the others go to `report`.

    Args:
        source: of the records.
        census: counts the usable ones in, and refuses those that conflict with others.
        report: called with each problem; may raise.
        look: how closely pictures are checked.
        begin: so many records are skipped; their problems were reported when they were first read.
    """
    number, root = 0, source.root

    def report_new(problem: Problem) -> None:
        if number >= begin:
            report(problem)

    for where, row in source.read(report_new):
        number += 1
        if number <= begin:
            continue
        try:
            listing, pictures = to_listing(row, source.folder, root), tuple[bytes, ...]()
            if look != "none":
                pictures = checked_pictures(listing, decoded=look == "decode")
            census.take(listing, left_columns(row))
        except CatalogueError as error:
            report(problem_of(error, row, where, source.file))
            continue
        yield Read(number, listing, pictures)


def _with_splits(listings: list[Listing]) -> list[Listing]:
    if all(x.split is not None for x in listings):
        return listings
    splits = draw_splits([x.group for x in listings], [x.duplicate_group for x in listings])
    return [replace(x, split=splits[x.group]) for x in listings]


def require_splits(catalogue: Catalogue) -> None:
    """Check that every split that a run uses has something to retrieve.

    Raises:
        CatalogueError: a split has fewer than two products, or no product with two listings.
    """
    for split in SPLITS:
        counts = Counter(catalogue.subset(split).column("product_id"))
        pairs = sum(n > 1 for n in counts.values())
        if len(counts) < 2 or (not pairs and split != "distill"):
            raise CatalogueError(
                f"catalogue {catalogue.name}: the `{split}` split has {len(counts)} product(s), "
                f"{pairs} of them with two listings or more; a run needs at least two products in "
                "each split, and pairs of listings in train, reward and test: move products there, "
                "or leave `split` out everywhere to have splits drawn"
            )


def require_teaching(catalogue: Catalogue, oracle_file: str | None = None) -> None:
    """Check that the splits are large enough, and that the generator has something to learn from.

    Raises:
        CatalogueError: a split is too small; or no listing of `distill` has attributes or an
            oracle text, and no file of an oracle is given.
    """
    require_splits(catalogue)
    listings = catalogue.subset("distill").listings
    if oracle_file is None and not any(x.attributes or x.oracle for x in listings):
        raise CatalogueError(
            f"catalogue {catalogue.name}: none of the {len(listings)} listings of the `distill` "
            "split has `attributes` or an `oracle` text, and distillation learns from them; add "
            "either column for a part of the catalogue (the embedder needs none), or let a larger "
            "model write them: `afmrl oracle`, then --oracle.file"
        )
