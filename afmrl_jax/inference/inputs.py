"""What a user gives to a model: words, pictures and attributes, in several forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.attributes.text_format import (
    MalformedAttributes,
    format_attributes,
    parse_attributes,
)
from afmrl_jax.data.batching.tokenizer import Tokenizer
from afmrl_jax.data.catalogue.pictures import to_png
from afmrl_jax.data.catalogue.records import Listing, StoredPicture
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError, InputError
from afmrl_jax.runtime.files import resolve_path

KEYS = ("text", "image", "attributes")
Item = str | bytes | Path | Image.Image | np.ndarray | Mapping[str, object]
"""A text (str); a picture (path, encoded bytes, Pillow's, or uint8 [y x 3]); or a dictionary of
`text`, `image` and `attributes`, where a string under `image` is a path, and a list has several
pictures."""


@dataclass(frozen=True)
class Input:
    """An item that has been checked, except that its picture is not decoded yet."""

    text: str | None = None
    picture: bytes | str | StoredPicture | None = None
    """Encoded picture, its path, or an object that reads it."""
    attributes: str | None = None
    more: tuple[bytes | str | StoredPicture, ...] = ()
    """Further pictures; models read as many as `image.max_pictures` lets them."""


@dataclass(frozen=True)
class Pixels:
    """A picture in memory, encoded without loss when it is needed."""

    picture: Image.Image

    def read(self) -> bytes:
        """A PNG.

        Raises:
            CatalogueError: the picture cannot be used.
        """
        return to_png(self.picture)


def read_inputs(items: Sequence[Item], *, first: int = 0) -> list[Input]:
    """Check items and convert them to one form; pictures are not decoded yet.

    Args:
        items: see `Item`.
        first: number of the first one in messages.

    Raises:
        InputError: `items` is not a list, or an item, named by its number, cannot be used.
    """
    if isinstance(items, str | bytes | Mapping):
        raise InputError(f"give a list of items, not one {type(items).__name__}: [item]")
    return [_read(item, f"items[{number}]") for number, item in enumerate(items, first)]


def _read(item: Item, name: str) -> Input:
    if isinstance(item, str):
        parts: Mapping[str, object] = {"text": item}
    elif isinstance(item, Mapping):
        parts = item
    else:
        parts = {"image": item}
    unknown = [str(key) for key in parts if key not in KEYS]
    if unknown:
        raise InputError(
            f"{name} has the unknown key {unknown[0]!r}; the keys are {', '.join(KEYS)}"
        )
    text, image, attributes = (parts.get(key) for key in KEYS)
    if isinstance(image, list | tuple) and not image:
        raise InputError(f"{name}: the list of pictures is empty; leave `image` out")
    pictures = image if isinstance(image, list | tuple) else [] if image is None else [image]
    read = [_picture(x, name) for x in pictures]
    if text is not None and not isinstance(text, str):
        raise InputError(f"{name}: text must be a string, not {type(text).__name__}")
    found = Input(
        text if text and text.strip() else None,
        read[0] if read else None,
        _attributes(attributes, name),
        tuple(read[1:]),
    )
    if found == Input():
        raise InputError(f"{name} is empty; give text, image, or both")
    return found


def _picture(image: object, name: str) -> bytes | str | StoredPicture:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        return Pixels(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"{name}: an array must be a picture of bytes, uint8 [height width 3], not "
                f"{image.dtype} {list(image.shape)}"
            )
        return Pixels(Image.fromarray(image))
    if isinstance(image, str | Path):
        if not _is_file(resolve_path(image)):
            raise InputError(f"{name}: there is no picture {image}; correct the path")
        return str(image)
    raise InputError(
        f"{name}: an image must be a path, encoded bytes, a Pillow picture or a uint8 array, not "
        f"{type(image).__name__}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name that is too long.
        return False


def _attributes(value: object, name: str) -> str | None:
    """Attributes as the text that the embedder reads; a text is not changed."""
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, Mapping):
        raise InputError(
            f"{name}: attributes must be a text `key: value; key: value` or a mapping, not "
            f"{type(value).__name__}"
        )
    if not value:
        return None
    text = format_attributes((str(k), str(v)) for k, v in value.items())
    try:
        parse_attributes(text)
    except MalformedAttributes as error:
        raise InputError(f"{name}: these attributes cannot be written as text: {error}") from error
    return text


def rows_of(
    inputs: Sequence[Input], tokenizer: Tokenizer, image: ImageConfig, text: TextBudget
) -> RowBuilder:
    """A builder of the inputs' rows, for which a broken picture is always an error."""
    listings = [
        Listing(
            str(n),
            str(n),
            x.text or "",
            b"" if x.picture is None else x.picture,
            more_images=x.more,
        )
        for n, x in enumerate(inputs)
    ]
    return RowBuilder.of(listings, tokenizer, replace(image, bad_pictures="fatal"), text)


@contextmanager
def named(number: int) -> Iterator[None]:
    """Adds the item's number to the error if its picture cannot be used."""
    try:
        yield
    except CatalogueError as error:
        # The outer message is about listings and training; its cause is about the picture.
        cause = error.__cause__ if isinstance(error.__cause__, CatalogueError) else error
        raise InputError(f"items[{number}]: {cause}") from error
