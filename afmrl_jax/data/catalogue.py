"""Reading catalogues: a folder with `listings.jsonl` or `listings.parquet`, or the furniture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.data.images import decode, open_picture
from afmrl_jax.data.records import SPLITS, Catalogue, Listing, Problem, hash_splits, linked
from afmrl_jax.errors import CatalogueError
from afmrl_jax.progress import say

REQUIRED = ("listing_id", "product_id", "title", "image")
OPTIONAL_TEXT = (
    "category", "oracle", "seller", "split", "family_id", "duplicate_of", "duplicate_group",
)  # fmt: skip
FILES = ("listings.parquet", "listings.jsonl")

Report = Callable[[Problem], None]
Row = tuple[str, Mapping[str, Any]]


def load_catalogue(name_or_path: str | Path, *, skip_bad: bool = False) -> Catalogue:
    """A catalogue by name or folder.

    Args:
        name_or_path: `furniture`, a folder, or its `listings` file.
        skip_bad: leave unusable records out (they are listed in `skipped`) instead of stopping.
            Pictures are then decoded here and not only opened, so that none fails later.

    Raises:
        CatalogueError: names the record, the file and the remedy.
    """
    if str(name_or_path) == "furniture":
        from afmrl_jax.data.furniture import load_furniture

        return load_furniture()
    path = find_listings(Path(name_or_path))
    return read_catalogue_file(path, name=path.parent.name, skip_bad=skip_bad)


def say_skipped(catalogue: Catalogue) -> None:
    """Name every record that `skip_bad` left out, and their number."""
    for problem in catalogue.skipped:
        say(f"left out: {problem}")
    if catalogue.skipped:
        say(f"{len(catalogue.skipped)} record(s) left out (--skip-bad)")


def find_listings(path: Path) -> Path:
    """The listings file of a folder, or the file itself."""
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    what = "holds neither of " + " and ".join(FILES) if path.is_dir() else "does not exist"
    raise CatalogueError(f"catalogue {path} {what}; give `furniture` or a catalogue folder")


def read_catalogue_file(
    path: Path, *, name: str, skip_bad: bool = False, verify_pictures: bool = True
) -> Catalogue:
    """A catalogue from its listings file; see `load_catalogue`."""
    skipped: list[Problem] = []

    def report(problem: Problem) -> None:
        if problem.severity == "warning":
            return
        if not skip_bad:
            hint = "(--skip-bad leaves such records out)"
            raise CatalogueError(f"{problem} {hint}")
        skipped.append(problem)

    listings = list(read_listings(path, report, decode_pictures=skip_bad, verify=verify_pictures))
    listings = check_whole(listings, str(path), report)
    return Catalogue(name, tuple(assign_splits(listings)), tuple(skipped))


def read_listings(
    path: Path, report: Report, *, decode_pictures: bool, verify: bool = True
) -> Iterator[Listing]:
    """Usable records of a listings file; the others go to `report`.

    Args:
        path: listings file.
        report: called with each problem; may raise.
        decode_pictures: decode every picture, not only its header.
        verify: look at pictures at all.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path, report)
    seen: set[str] = set()
    for where, row in rows:
        try:
            listing = to_listing(row, path.parent)
            if listing.listing_id in seen:
                raise CatalogueError(
                    "the listing id occurs twice; give every listing an id of its own"
                )
            if verify:
                data = listing.read_image_bytes()
                decode(data) if decode_pictures else open_picture(data)
        except CatalogueError as error:
            what, _, remedy = str(error).rpartition("; ")
            label = row.get("listing_id")
            record = f"listing {label!r} ({where})" if label else where
            report(Problem(record, str(path), what, remedy))
            continue
        seen.add(listing.listing_id)
        yield listing


def _json_rows(path: Path, report: Report) -> Iterator[Row]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"not valid JSON ({error.msg} at column {error.colno})"
                report(Problem(f"line {number}", str(path), what, "mend the line"))
                continue
            if not isinstance(row, dict):
                what = "not a JSON object"
                report(Problem(f"line {number}", str(path), what, "write one object a line"))
                continue
            yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CatalogueError(f"{path} is not a Parquet file ({error}); write it again") from error
    missing = [name for name in REQUIRED if name not in file.schema_arrow.names]
    if missing:
        raise CatalogueError(f"{path} lacks the column {', '.join(missing)}; add it")
    number = 0
    for batch in file.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _text(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        raise CatalogueError(f"the column {name!r} is missing or empty; add it")
    value = row[name]
    if not isinstance(value, str | int):
        raise CatalogueError(f"{name!r} is a {type(value).__name__}; write text")
    value = str(value).strip()
    if not value:
        raise CatalogueError(f"{name!r} is empty; write one")
    return value


def to_listing(row: Mapping[str, Any], folder: Path) -> Listing:
    """One record as a listing.

    Raises:
        CatalogueError: "what is wrong; the remedy".
    """
    values = {name: _text(row, name) for name in REQUIRED[:3]}
    for name in OPTIONAL_TEXT:
        if row.get(name) is not None and str(row[name]).strip():
            values[name] = _text(row, name)
    if values.get("split", SPLITS[0]) not in SPLITS:
        raise CatalogueError(f"unknown split {values['split']!r}; use one of {', '.join(SPLITS)}")
    return Listing(
        image=_image(row, folder), attributes=_attributes(row.get("attributes")), **values
    )


def _image(row: Mapping[str, Any], folder: Path) -> bytes | str:
    image = row.get("image")
    if isinstance(image, bytes) and image:
        return image
    name = _text(row, "image")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CatalogueError(
            f"picture {name!r} lies outside the catalogue folder; copy it into images/"
        )
    if not path.is_file():
        raise CatalogueError(f"picture {name!r} does not exist; add it or mend the name")
    return str(path)


def _attributes(value: Any) -> dict[str, str] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise CatalogueError(
                "'attributes' is text but not JSON; write an object of key and value"
            ) from error
    if isinstance(value, list) and all(isinstance(x, tuple) for x in value):
        # A Parquet map comes as pairs.
        value = dict(value)
    if not isinstance(value, Mapping):
        raise CatalogueError("'attributes' is not an object; write key and value pairs")
    out = {}
    for key, content in value.items():
        if content is None or not str(content).strip():
            continue
        clean = {";": ",", ":": " ", "\n": " "}
        text = ["".join(clean.get(c, c) for c in str(part)).strip() for part in (key, content)]
        if not all(text):
            raise CatalogueError("'attributes' has an empty key; name every attribute")
        out[text[0].lower()] = text[1]
    return out or None


def check_whole(listings: list[Listing], file: str, report: Report) -> list[Listing]:
    """What only the whole shows: too few products, splits for some, groups in two splits."""
    products = {x.product_id for x in listings}
    if len(products) < 2:
        raise CatalogueError(
            f"{file} holds {len(products)} usable product(s); retrieval needs at least two"
        )
    without = [x for x in listings if x.split is None]
    if 0 < len(without) < len(listings):
        raise CatalogueError(
            f"{file}: listing {without[0].listing_id!r} and {len(without) - 1} more have no split "
            "while others have; give all a split or none"
        )
    split_of: dict[str, str | None] = {}
    kept = []
    for x in listings:
        known = [x.group] + ([f"duplicate group {x.duplicate_group}"] if x.duplicate_group else [])
        divided = [name for name in known if split_of.setdefault(name, x.split) != x.split]
        if divided:
            what = f"{divided[0]} is in split {split_of[divided[0]]!r} and in {x.split!r}"
            remedy = "keep all listings of a family, and of a duplicate group, in one split"
            report(Problem(f"listing {x.listing_id!r}", file, what, remedy))
            continue
        kept.append(x)
    return kept


def assign_splits(listings: list[Listing]) -> list[Listing]:
    """The listings with a split each; without any it is by a hash of the family or product.

    Families that a duplicate group links go together.
    """
    if all(x.split is not None for x in listings):
        return listings
    first = linked([x.group for x in listings], [x.duplicate_group for x in listings])
    splits = hash_splits(list(first.values()))
    return [replace(x, split=splits[first[x.group]]) for x in listings]


def require_splits(catalogue: Catalogue) -> None:
    """Check that every split that a run uses has something to find.

    Raises:
        CatalogueError: a split has fewer than two products, or no product with two listings.
    """
    for split in SPLITS:
        counts = Counter(x.product_id for x in catalogue.subset(split).listings)
        pairs = sum(n > 1 for n in counts.values())
        if len(counts) < 2 or (not pairs and split != "distill"):
            raise CatalogueError(
                f"catalogue {catalogue.name}: the `{split}` split has {len(counts)} product(s), "
                f"{pairs} of them with two listings or more; a run needs at least two products in "
                "each split, and pairs of listings in train, reward and test: move products there, "
                "or leave `split` out everywhere to have it drawn"
            )


def require_teaching(catalogue: Catalogue, oracle_file: str | None = None) -> None:
    """Check that a run has splits to find things in, and something to teach G.

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
            "either column for a part of the catalogue (R needs none), or let a larger model write "
            "them: `afmrl oracle`, then --oracle.file"
        )
