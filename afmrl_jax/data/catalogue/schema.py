"""From a raw record to a listing: which columns there are, and what is wrong with a value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path

from afmrl_jax.data.catalogue.records import ROLES, SPLITS, Listing, Problem
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import is_local
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.runtime.terminal import cleaned, printable
from afmrl_jax.types import Plain

REQUIRED = ("listing_id", "product_id", "title", "image")
OPTIONAL_TEXT = (
    "category", "oracle", "seller", "split", "family_id", "duplicate_of", "duplicate_group", "role",
    "part",
)  # fmt: skip
IMAGES = "images"
"""All pictures of a listing, or those besides `image`: a list, or their names in one text."""
MORE_IMAGES = tuple(f"image_{number}" for number in range(2, 17))
"""Further pictures, for tables that have one a column."""
COLUMNS = (*REQUIRED, "attributes", *OPTIONAL_TEXT, IMAGES)
MAX_PICTURES = 32
"""Pictures of a listing."""
SEPARATORS = "|;,"
"""Between the names of pictures in a text: the first of these that is in it."""
PICTURE_ENDS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Names of the files that count as pictures where a folder of them is given."""
IDS = ("listing_id", "product_id", "family_id", "duplicate_of", "duplicate_group")
"""Texts that name something, so nothing in them is replaced: control characters are refused."""
SHOWN = 60
"""Letters of a value that a message repeats."""
MAX_EXTRA = 64
"""Columns of a record, besides those of a listing, that are carried."""
LONGEST_EXTRA = 1024
"""Letters of the longest text in them: they are in memory for every listing."""
_SEPARATORS = str.maketrans({";": ",", ":": " ", "\n": " "})
"""What separates attributes in a list, and its replacement inside an attribute."""


def _text(row: Mapping[str, object], name: str) -> str:
    if row.get(name) is None:
        raise CatalogueError(f"the column {name!r} is missing or empty; add it")
    value = row[name]
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise CatalogueError(f"{name!r} is a {type(value).__name__}; write text")
    found = str(value).strip()
    if not found:
        raise CatalogueError(f"{name!r} is empty; write one")
    if name in IDS and printable(found) != found:
        raise CatalogueError(
            f"{name!r} has control characters ({printable(found)[:SHOWN]!r}); remove them"
        )
    # The name of a file is what it is.
    return _encodable(found, name) if name == "image" else _clean(found, name)


def _clean(text: str, name: str) -> str:
    """A text without control characters; a title that had nothing else is empty, and refused."""
    found = cleaned(_encodable(text, name)).strip()
    if not found:
        raise CatalogueError(f"{name!r} has only control characters; write a text")
    return found


def _encodable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CatalogueError(
            f"{name!r} has half of a surrogate pair at letter {error.start + 1}; remove it"
        ) from error
    return text


def problem_of(error: CatalogueError, row: Mapping[str, object], where: str, file: str) -> Problem:
    """What is wrong with a record, from an error of the form "what is wrong; the remedy".

    Args:
        error: from `to_listing`, or about the listing's picture.
        row: the record, which may have a listing id.
        where: its place in the file.
        file: the file that holds it.
    """
    what, _, remedy = str(error).rpartition("; ")
    label = row.get("listing_id")
    # Not whatever else may stand there: a message is short.
    known = isinstance(label, str | int) and label
    record = f"listing {_shown(label)} ({where})" if known else where
    return Problem(record, file, what, remedy)


def to_listing(row: Mapping[str, object], folder: Path, root: Path | None = None) -> Listing:
    """A record as a listing.

    Args:
        row: the record.
        folder: names of pictures are relative to it.
        root: where pictures must lie once links are followed; by default `folder`.

    Raises:
        CatalogueError: "what is wrong; the remedy".
    """
    values = {name: _text(row, name) for name in REQUIRED[:3]}
    for name in OPTIONAL_TEXT:
        if row.get(name) is not None and str(row[name]).strip():
            values[name] = _text(row, name)
    if values.get("split", SPLITS[0]) not in SPLITS:
        raise CatalogueError(f"unknown split {values['split']!r}; use one of {', '.join(SPLITS)}")
    if values.get("role", ROLES[0]) not in ROLES:
        raise CatalogueError(f"unknown role {values['role']!r}; use one of {', '.join(ROLES)}")
    first, *others = _pictures(row, folder, root or folder)
    return Listing(
        image=first,
        more_images=tuple(others),
        attributes=_attributes(row.get("attributes")),
        extra={name: value for name, value, why in _others(row) if not why} or None,
        **values,
    )


def left_columns(row: Mapping[str, object]) -> dict[str, str]:
    """Columns that are neither a listing's nor can be carried, and why."""
    return {name: why for name, _, why in _others(row) if why}


def _others(row: Mapping[str, object]) -> Iterator[tuple[str, Plain, str]]:
    """Columns that are not a listing's and not empty: the value, or else why it is not carried."""
    carried = 0
    for name, value in row.items():
        if name in COLUMNS or name in MORE_IMAGES or value is None or value == "" or value != value:
            continue
        if isinstance(value, Decimal | date):
            value = str(value)
        why = ""
        if isinstance(value, float) and math.isinf(value):
            value, why = "", "not finite"
        elif not isinstance(value, str | int | float):
            value, why = "", f"a {type(value).__name__}"
        elif isinstance(value, str):
            if len(value) > LONGEST_EXTRA:
                why = f"longer than {LONGEST_EXTRA} letters"
            value = cleaned(value[:LONGEST_EXTRA].encode(errors="replace").decode()).strip()
            if not value:
                continue
        if not name or len(name) > SHOWN or printable(name) != name:
            why = "its name"
        elif carried == MAX_EXTRA:
            why = f"there are more than {MAX_EXTRA}"
        carried += not why
        yield name, value, why


def _pictures(row: Mapping[str, object], folder: Path, root: Path) -> list[bytes | str]:
    """All pictures of a record, each once: `image`, then `images`, then `image_2` and so on."""
    named = [row.get("image"), *_listed(row.get(IMAGES), folder), *map(row.get, MORE_IMAGES)]
    # Without any, what is wrong with `image` is said.
    found = [x for x in named if not _is_empty(x)] or named[:1]
    if len(found) > MAX_PICTURES:
        raise CatalogueError(f"it has {len(found)} pictures; give {MAX_PICTURES} at most")
    out: list[bytes | str] = []
    for x in found:
        picture = _image(x, folder, root)
        if picture not in out:
            out.append(picture)
    return out


def _is_empty(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _listed(value: object, folder: Path) -> Sequence[object]:
    """The pictures of the column `images`, as they stand there."""
    if _is_empty(value):
        return []
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        raise CatalogueError(f"{IMAGES!r} is a {type(value).__name__}; write a list of pictures")
    text = value.strip()
    if text.startswith("["):
        remedy = "write a list of names"
        parsed = parse_json(text, f"{IMAGES!r} is text, but", error=CatalogueError, remedy=remedy)
        return _listed(parsed, folder)
    try:
        if (folder / text).is_dir():
            inside = (folder / text).iterdir()
            return [*sorted(f"{text}/{x.name}" for x in inside if _is_picture(x.name))]
        whole = (folder / text).is_file()
    except (OSError, ValueError):  # Too long for a name, or a NUL in it.
        whole = False
    sign = next((x for x in SEPARATORS if x in text), None)
    return [text] if whole or sign is None else [x.strip() for x in text.split(sign)]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDS)


def _image(image: object, folder: Path, root: Path) -> bytes | str:
    if isinstance(image, Mapping) and image.keys() == {"bytes", "path"}:
        # How `datasets` stores a picture: as bytes, or else where it lies.
        image = image["bytes"] or image["path"]
    if isinstance(image, bytes) and image:
        return image
    name = _text({"image": image}, "image")
    if name.lower().startswith(("http://", "https://")):
        raise CatalogueError(
            f"picture {_shown(name)} is an address; download it and give the name of the file"
        )
    path = folder / name
    try:
        # A remote folder has no links to follow.
        inside = (
            path.resolve().is_relative_to(root.resolve())
            if is_local(folder)
            else ".." not in path.parts
        )
        exists = inside and path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        # Too long, a NUL, or a link that leads to itself.
        reason = getattr(error, "strerror", None) or str(error).partition(" from ")[0]
        raise CatalogueError(
            f"picture {_shown(name)} cannot be found ({reason}); correct the name"
        ) from error
    if not inside:
        raise CatalogueError(
            f"picture {_shown(name)} is outside the catalogue folder; copy it into images/"
        )
    if not exists:
        raise CatalogueError(f"picture {_shown(name)} does not exist; add it or correct the name")
    return str(path)


def _shown(value: object) -> str:
    """The start of a value, as it may stand in a message."""
    text = str(value)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _attributes(value: object) -> dict[str, str] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = parse_json(
            value,
            "'attributes' is text, but",
            error=CatalogueError,
            remedy="write an object of keys and values",
        )
    if isinstance(value, list) and all(isinstance(x, tuple) for x in value):
        # A Parquet map comes as pairs.
        pairs: list[tuple[object, object]] = list(value)
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise CatalogueError("'attributes' is not an object; write key and value pairs")
    if len({str(key) for key, _ in pairs}) < len(pairs):
        raise CatalogueError("'attributes' has a key twice; name every attribute once")
    out = {}
    for key, content in pairs:
        if content is None or (isinstance(content, str) and not content.strip()):
            continue
        text = [_attribute(part, key).translate(_SEPARATORS).strip() for part in (key, content)]
        if not all(text):
            raise CatalogueError("'attributes' has an empty key or value; name every attribute")
        out[text[0].lower()] = text[1]
    return out or None


def _attribute(part: object, key: object) -> str:
    """A key or a value as text.

    Raises:
        CatalogueError: it is neither text nor a number or a truth value (nor a date, of Parquet).
    """
    if not isinstance(part, str | int | float | Decimal | date):
        what = f"a {type(part).__name__}"
        raise CatalogueError(f"the attribute {_shown(key)} is {what}; write text or a number")
    if isinstance(part, float | Decimal) and not math.isfinite(part):
        raise CatalogueError(f"the attribute {_shown(key)} is {part}; leave it out")
    return cleaned(_encodable(str(part), "attributes"))
