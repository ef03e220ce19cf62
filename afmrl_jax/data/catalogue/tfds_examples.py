"""Listings as examples of a TFDS dataset, and back: texts and bytes, nothing decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.catalogue.schema import OPTIONAL_TEXT, REQUIRED

TEXTS = (*REQUIRED[:3], *OPTIONAL_TEXT)
COLUMNS = (*TEXTS, "attributes")
"""All but the picture; a missing one is stored as the empty text, attributes as JSON."""
PART = "listings"
"""The one split that TFDS knows: which of our splits a listing is in is a column."""


@lru_cache(maxsize=1)
def features() -> Any:
    """The fields of an example as TFDS has them."""
    # Imported here: it takes a second, and only stores need it.
    import tensorflow_datasets as tfds

    texts = {name: tfds.features.Text() for name in COLUMNS}
    # Not `Image`, which data sources decode unless told not to.
    return tfds.features.FeaturesDict({**texts, "image": tfds.features.Scalar(np.object_)})


def to_example(x: Listing, picture: bytes) -> dict[str, Any]:
    """A listing with its encoded picture, as it is stored."""
    attributes = json.dumps(dict(x.attributes), ensure_ascii=False) if x.attributes else ""
    texts = {name: getattr(x, name) or "" for name in TEXTS}
    return {**texts, "attributes": attributes, "image": picture}


def from_example(example: Mapping[str, Any]) -> dict[str, Any]:
    """What TFDS reads of an example as a raw record, without the columns that are empty."""
    row: dict[str, Any] = {name: example[name].decode() for name in COLUMNS if example[name]}
    if "attributes" in row:
        row["attributes"] = json.loads(row["attributes"])
    return row | {"image": bytes(example["image"])}
