"""Listings as examples of a TFDS dataset, and back: texts and bytes, nothing decoded."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.catalogue.schema import OPTIONAL_TEXT, REQUIRED

if TYPE_CHECKING:
    from tensorflow_datasets.features import FeaturesDict

TEXTS = (*REQUIRED[:3], *OPTIONAL_TEXT)
COLUMNS = (*TEXTS, "attributes")
"""All but the picture; a missing one is stored as an empty text, attributes as JSON."""
PART = "listings"
"""The only split in TFDS's sense: the split of a listing (train, test, ...) is a column."""


_IMPORTING = threading.Lock()
"""Threads that decode pictures ask for `features` at once, and TFDS imports its parts lazily, with
locks that two importing threads take in opposite orders: they would wait for each other forever."""


def features() -> FeaturesDict:
    """The fields of an example, for TFDS."""
    with _IMPORTING:
        return _features()


@lru_cache(maxsize=1)
def _features() -> FeaturesDict:
    # Imported here: it takes a second, and only stores need it.
    import tensorflow_datasets as tfds

    texts = {name: tfds.features.Text() for name in COLUMNS}
    # Not `Image`, which data sources decode by default.
    return tfds.features.FeaturesDict({**texts, "image": tfds.features.Scalar(np.object_)})


def to_columns(x: Listing) -> dict[str, str]:
    """The stored texts of a listing, by column."""
    attributes = json.dumps(dict(x.attributes), ensure_ascii=False) if x.attributes else ""
    texts = {name: getattr(x, name) or "" for name in TEXTS}
    return {**texts, "attributes": attributes}


def to_example(x: Listing, picture: bytes) -> dict[str, str | bytes]:
    """A listing with its encoded picture, as it is stored."""
    return {**to_columns(x), "image": picture}


def from_example(example: Mapping[str, bytes]) -> dict[str, object]:
    """An example that TFDS has read as a raw record, without empty columns."""
    texts = {name: example[name].decode() for name in COLUMNS if example[name]}
    row: dict[str, object] = {**texts}
    if "attributes" in texts:
        row["attributes"] = json.loads(texts["attributes"])
    return row | {"image": bytes(example["image"])}
