"""Listings as examples of a TFDS dataset, and back: texts and bytes, nothing decoded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.catalogue.schema import IMAGES, OPTIONAL_TEXT, REQUIRED
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import parse_json, read_json

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    from tensorflow_datasets.features import FeaturesDict

FEATURES = "features.json"
DESCRIPTIONS = ("dataset_info.json", FEATURES)
"""What TFDS reads before any example."""
AGAIN = "copy it again, or convert again"
TEXTS = (*REQUIRED[:3], *OPTIONAL_TEXT)
OBJECTS = ("attributes", "extra")
PICTURES = "pictures"
"""How many pictures a listing has, if more than one."""
STORED = (*TEXTS, *OBJECTS)
"""What an example has beside its pictures; missing ones are empty, the last two JSON."""
COLUMNS = (*STORED, PICTURES)
"""What a store's columns have."""
MORE = "more_images"
"""The pictures after the first, one behind the other, each after its length in four bytes. One
blob, because TFDS does not read a sequence that older examples lack."""
ADDED = ("part", "extra", PICTURES)
"""Columns that older stores lack."""
PART = "listings"
"""The only split in TFDS's sense: the split of a listing (train, test, ...) is a column."""


_IMPORTING = threading.Lock()
"""Threads that decode pictures ask for `features` at once, and TFDS imports its parts lazily, with
locks that two importing threads take in opposite orders: they would wait for each other forever."""


def features(*, several: bool = True) -> FeaturesDict:
    """The fields of an example, for TFDS.

    Args:
        several: with those of further pictures, which are read as None where there are none.
    """
    with _IMPORTING:
        return _features(several)


@lru_cache(maxsize=2)
def _features(several: bool) -> FeaturesDict:
    # Imported here: it takes a second, and only stores need it.
    import tensorflow_datasets as tfds

    texts = {name: tfds.features.Text() for name in STORED}
    # Not `Image`, which data sources decode by default.
    pictures = ("image", MORE) if several else ("image",)
    blobs = {name: tfds.features.Scalar(np.object_) for name in pictures}
    return tfds.features.FeaturesDict({**texts, **blobs})


def to_bytes(example: Mapping[str, str | bytes], *, several: bool) -> bytes:
    """An example as a record; equal examples give equal bytes, in every process.

    A proto's map has no order of its own, and TFDS writes it in one that is drawn anew for each
    process: a catalogue converted twice would be two stores by their fingerprints.
    """
    fields = features(several=several)
    proto = _serializer(fields).get_tf_example(fields.encode_example(example))
    return bytes(proto.SerializeToString(deterministic=True))


@lru_cache(maxsize=2)
def _serializer(fields: FeaturesDict) -> ExampleSerializer:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(fields.get_serialized_info())


def to_columns(x: Listing) -> dict[str, str]:
    """The stored texts of a listing, by column."""
    texts = {name: getattr(x, name) or "" for name in TEXTS}
    objects = {name: getattr(x, name) for name in OBJECTS}
    texts[PICTURES] = str(len(x.pictures)) if x.more_images else ""
    return texts | {
        name: json.dumps(dict(value), ensure_ascii=False) if value else ""
        for name, value in objects.items()
    }


def to_example(x: Listing, pictures: Sequence[bytes]) -> dict[str, str | bytes]:
    """A listing with its encoded pictures, as it is stored."""
    columns = to_columns(x)
    texts = {name: columns[name] for name in STORED}
    return {**texts, "image": pictures[0], MORE: joined(pictures[1:])}


def joined(pictures: Sequence[bytes]) -> bytes:
    """Several pictures in one text of bytes; see `MORE`."""
    return b"".join(len(x).to_bytes(4, "little") + x for x in pictures)


def divided(blob: bytes) -> list[bytes]:
    """The pictures of `joined`.

    Raises:
        CatalogueError: "what is wrong; the remedy".
    """
    out, at = [], 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "little")
        if end > len(blob) or end == at + 4:
            raise CatalogueError(f"its further pictures are damaged; {AGAIN}")
        out.append(blob[at + 4 : end])
        at = end
    return out


def from_example(example: Mapping[str, bytes]) -> dict[str, object]:
    """An example that TFDS has read as a raw record, without empty columns."""
    # TFDS gives None for a column that an older store lacks.
    row: dict[str, object] = {name: example[name].decode() for name in STORED if example.get(name)}
    for name in OBJECTS:
        if name in row:
            row[name] = parse_json(str(row[name]), f"{name!r}", error=CatalogueError, remedy=AGAIN)
    # As they were in the record that was stored: beside a listing's columns.
    extra = row.pop("extra", None)
    extra = extra if isinstance(extra, dict) else {}
    found = extra | row | {"image": bytes(example["image"])}
    more = divided(bytes(example.get(MORE) or b""))
    return found | {IMAGES: more} if more else found


def parse(data: bytes) -> dict[str, object]:
    """A stored example as a raw record.

    Raises:
        CatalogueError: "what is wrong; the remedy".
    """
    try:
        return from_example(features().deserialize_example_np(data))
    except CatalogueError:
        raise
    except Exception as error:  # Of protobuf, TFDS, or decoding.
        raise CatalogueError(f"the record is damaged ({error}); {AGAIN}") from error


def open_prepared(folder: Path) -> DatasetBuilder:
    """A dataset that TFDS wrote, for reading.

    Raises:
        CatalogueError: its description is missing or broken, or names code that is not TFDS's own:
            TFDS would import it.
    """
    for name in DESCRIPTIONS:
        found = read_json(folder / name, error=CatalogueError, remedy=AGAIN)
        for place in _classes(found) if name == FEATURES else ():
            if "." in place and not place.startswith("tensorflow_datasets.core.features."):
                raise CatalogueError(
                    f"{folder / name} names a class that is not of TFDS, {place[:60]!r}; {AGAIN}"
                )
    with _IMPORTING:
        import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # Of protobuf, or whatever TFDS stumbles over.
        reason = " ".join(str(error).split())[:200]
        raise CatalogueError(f"{folder} cannot be read by TFDS ({reason}); {AGAIN}") from error


def _classes(value: object) -> Iterator[str]:
    """The names of classes in a description of features."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(inside, str):
                yield inside
            yield from _classes(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _classes(inside)
