"""Amazon Berkeley Objects (ABO): listings in many languages, several pictures of each product.

Layout, from the README that the authors ship with the data, at
amazon-berkeley-objects.s3.amazonaws.com:

    listings/metadata/listings_<i>.json.gz   16 files, i from 0 to f; one JSON object a line
    images/metadata/images.csv.gz            image_id,height,width,path
    images/small/<path>                      pictures of at most 256 px (abo-images-small.tar)
    images/original/<path>                   full size (abo-images-original.tar)

Texts are lists of {"language_tag": "en_US", "value": ...}. The README gives `product_type` as text;
the files have it as [{"value": ...}], and both are read. A listing is identified by item_id and
domain_name together, so its id here is `ITEM@DOMAIN`, and the ids of the same product's other
pictures are `ITEM@DOMAIN-IMAGE`. The product is the item_id.

The authors publish no split for retrieval with the listings, so none is given: the catalogue's
reader draws splits by product.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.lines import read_json_lines, read_lines
from afmrl_jax.data.catalogue.published.reading import Layout, lacks, text
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.errors import CatalogueError

ATTRIBUTES = (
    "brand", "color", "material", "style", "pattern", "fabric_type", "finish_type", "item_shape",
    "model_name",
)  # fmt: skip
"""Texts of a listing that are attributes of the product, besides its type."""
IMAGES = "images/metadata/images.csv.gz"
COLUMNS = ["image_id", "height", "width", "path"]
SIZES = ("small", "original")
DOWNLOAD = (
    "download abo-listings.tar and abo-images-small.tar from the page of Amazon Berkeley Objects "
    "and unpack both in one folder, so that it has listings/metadata/listings_0.json.gz, "
    "images/metadata/images.csv.gz and images/small/"
)


def inputs(folder: Path) -> list[Path]:
    """The files of listings."""
    return sorted((folder / "listings/metadata").glob("listings_*.json.gz"))


def rows(
    folder: Path,
    report: Report,
    *,
    files: Sequence[Path] | None = None,
    language: str = "en",
    size: str = "small",
    other_images: int | None = None,
) -> Iterator[Row]:
    """A row for the main picture of every listing, and one for each other picture of it.

    In memory: the paths of all pictures (400,000 in the published set) by their ids.

    Args:
        folder: with `listings/` and `images/`.
        report: called with each broken record.
        files: some of `inputs(folder)`; all by default.
        language: start of the language tag of titles and attributes: "en", or "en_GB". A listing
            without a title in it gives title and attributes in the language of its first title.
        size: `small` or `original`, for pictures of `images/small` or `images/original`.
        other_images: at most so many pictures besides the main one; None for all.

    Raises:
        CatalogueError: the table of pictures is missing or has another form.
    """
    if size not in SIZES:
        raise CatalogueError(f"size {size!r} of pictures is unknown; use one of {', '.join(SIZES)}")
    paths = _read_paths(folder, report)
    for file in inputs(folder) if files is None else files:
        for number, record in read_json_lines(file, report):
            where = f"{file.name}, line {number}"

            def broken(what: str, file: Path = file, number: int = number) -> None:
                remedy = "fix or remove the line"
                report(Problem(f"line {number}", str(file), what, remedy))

            names = ("item_id", "domain_name", "main_image_id")
            what = lacks({name: record.get(name) for name in names})
            what = what or ("" if _tag(record, language) else "no item_name in any language")
            if what:
                broken(what)
                continue
            listing = _listing(record, language)
            for n, image in enumerate(_images(record, other_images)):
                if image not in paths:
                    broken(f"picture {image!r} is not in {IMAGES}")
                    continue
                name = listing["listing_id"] if n == 0 else f"{listing['listing_id']}-{image}"
                picture = f"images/{size}/{paths[image]}"
                yield where, {**listing, "listing_id": name, "image": picture}


def _read_paths(folder: Path, report: Report) -> dict[str, str]:
    path = folder / IMAGES
    if not path.is_file():
        raise CatalogueError(f"{path} does not exist; {DOWNLOAD}")
    lines = read_lines(path, report)
    header = next(lines, (0, ""))[1]
    if header.split(",") != COLUMNS:
        raise CatalogueError(
            f"{path} has the columns {header[:80]!r}; it should have {','.join(COLUMNS)}; "
            "download it again"
        )
    paths = {}
    for number, line in lines:
        try:
            fields = next(csv.reader([line]))
        except csv.Error:
            fields = []
        if len(fields) != len(COLUMNS) or not fields[0] or not fields[3]:
            what = f"{line[:80]!r} is not {','.join(COLUMNS)}"
            report(Problem(f"line {number}", str(path), what, "fix or remove the line"))
            continue
        paths[fields[0]] = fields[3]
    return paths


def _texts(record: Mapping[str, object], key: str) -> list[tuple[str, str]]:
    """(language tag, text) of a field; the tag is empty if the field has none."""
    found = record.get(key)
    if isinstance(found, str):
        return [("", text(found))]
    if not isinstance(found, list):
        return []
    pairs = [
        (text(x.get("language_tag")), text(x.get("value"))) for x in found if isinstance(x, dict)
    ]
    return [pair for pair in pairs if pair[1]]


def _tag(record: Mapping[str, object], language: str) -> str | None:
    """The start of the language tags to use for a listing; None if it has no title."""
    tags = [tag for tag, _ in _texts(record, "item_name")]
    if not tags:
        return None
    return language if any(tag.startswith(language) for tag in tags) else tags[0] or language


def _listing(record: Mapping[str, object], language: str) -> dict[str, object]:
    """The columns that all pictures of a listing share."""
    tag = _tag(record, language) or language
    titles = _texts(record, "item_name")
    attributes = {}
    for key in ATTRIBUTES:
        # Some listings repeat a value.
        values = dict.fromkeys(value for t, value in _texts(record, key) if t.startswith(tag))
        if values:
            attributes[key.replace("_", " ")] = ", ".join(values)
    kind = next((value for _, value in _texts(record, "product_type")), "")
    if kind:
        attributes["product type"] = kind.replace("_", " ").lower()
    return {
        "listing_id": f"{text(record['item_id'])}@{text(record['domain_name'])}",
        "product_id": text(record["item_id"]),
        "title": next((v for t, v in titles if t.startswith(tag)), titles[0][1]),
        "category": kind or None,
        "attributes": attributes or None,
    }


def _images(record: Mapping[str, object], others: int | None) -> list[str]:
    """Ids of the main picture and of the others, without repeats."""
    main = text(record["main_image_id"])
    found = record.get("other_image_id") or []
    more = [text(x) for x in found] if isinstance(found, list) else []
    more = [x for x in dict.fromkeys(more) if x and x != main]
    return [main, *more[:others]]


LAYOUT = Layout(
    name="abo",
    description="Amazon Berkeley Objects: 147,702 listings in many languages, 398,212 pictures",
    citation=(
        "J. Collins et al., ABO: Dataset and Benchmarks for Real-World 3D Object Understanding, "
        "CVPR 2022; amazon-berkeley-objects.s3.amazonaws.com; CC BY-NC 4.0"
    ),
    download=DOWNLOAD,
    inputs=inputs,
    rows=rows,
)
