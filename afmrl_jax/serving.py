"""Using a finished run on a catalogue: annotate, embed, search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.data.attributes import read_attributes, salvage_attributes
from afmrl_jax.data.catalogue import load_catalogue, say_skipped
from afmrl_jax.data.pipeline import RowBuilder
from afmrl_jax.data.records import Catalogue, Listing
from afmrl_jax.errors import AfmrlError, CatalogueError, RunError
from afmrl_jax.files import atomic_path, read_json, read_lines, write_json, write_text
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.index import load_index
from afmrl_jax.retrieval.scann_index import ScannIndex
from afmrl_jax.systems import FinishedRun
from afmrl_jax.training.annotate import annotate, write_attributes

INDEXES: dict[str, Any] = {"exact": ExactIndex, "scann": ScannIndex}
ABOUT = "embedded.json"


def read(name: str, split: str, *, skip_bad: bool = False) -> Catalogue:
    """The listings of a split, or of `all`; records that were left out are named."""
    catalogue = load_catalogue(name, skip_bad=skip_bad)
    say_skipped(catalogue)
    return select(catalogue, split)


def select(catalogue: Catalogue, split: str) -> Catalogue:
    """The listings of a split, or of `all`; none is an error."""
    chosen = catalogue if split == "all" else catalogue.subset(split)
    if not chosen.listings:
        raise CatalogueError(
            f"catalogue {catalogue.name} has no listing in split {split!r}; choose another"
        )
    return chosen


def annotate_catalogue(
    run: FinishedRun, generator: str, catalogue: Catalogue, out: Path
) -> dict[str, str]:
    """Attributes by listing id, written to `out`; a killed call goes on where it stopped."""
    architecture, params = run.model(generator)
    everything = np.arange(len(catalogue.listings))
    return annotate(
        architecture, params, run.rows(catalogue), everything, out, mesh=run.mesh, label="annotate"
    )


def _known(texts: Mapping[str, str], catalogue: Catalogue, path: Path) -> Mapping[str, str]:
    missing = [x.listing_id for x in catalogue.listings if x.listing_id not in texts]
    if missing:
        raise CatalogueError(
            f"{path} has no attributes of listing {missing[0]!r} and {len(missing) - 1} more; "
            "annotate the same listings, or leave --attributes out"
        )
    return texts


def embed_catalogue(
    run: FinishedRun,
    system_name: str | None,
    catalogue: Catalogue,
    out: Path,
    *,
    attributes: Path | None = None,
    kind: str = "exact",
) -> None:
    """Write a folder with an index of the catalogue and what a result list shows of it."""
    system = run.system(system_name)
    encoder = run.encoder(system)
    texts: Mapping[str, str] | None = None
    if system.generator is not None:
        if attributes is None:
            # Beside the folder, so that a second call need not write them again.
            attributes = out.with_name(f"{out.name}.attributes.jsonl")
            annotate_catalogue(run, system.generator, catalogue, attributes)
        texts = _known(read_attributes(attributes), catalogue, attributes)
    builder = run.rows(catalogue)
    vectors = encoder.embed(builder, np.arange(len(catalogue.listings)), texts, label="embed")
    ids = [x.listing_id for x in catalogue.listings]
    with atomic_path(out) as temporary:
        temporary.mkdir()
        INDEXES[kind](ids, vectors, encoder.identity).save(temporary / "index")
        shown = [
            {"listing_id": x.listing_id, "product_id": x.product_id, "title": x.title}
            | ({"attributes": texts.get(x.listing_id, "")} if texts is not None else {})
            for x in catalogue.listings
        ]
        lines = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in shown)
        write_text(temporary / "listings.jsonl", lines)
        write_json(temporary / ABOUT, {"system": system.name, "catalogue": catalogue.name})


@dataclass(frozen=True)
class Found:
    """The results of a search."""

    results: list[dict[str, Any]]
    """Best first, each with its score."""
    attributes: str
    """What G read off a query of picture and words; empty for a query of one of them."""


def search(run: FinishedRun, folder: Path, text: str | None, image: Path | None, k: int) -> Found:
    """Search what `embed_catalogue` wrote by words, a picture, or both."""
    text = (text or "").strip() or None
    if text is None and image is None:
        raise AfmrlError("a search needs --text, --image, or both")
    if k < 1:
        raise AfmrlError(f"-k {k}: ask for one result or more")
    if not (folder / ABOUT).is_file():
        raise RunError(f"{folder} holds no embedded catalogue; write one with `afmrl embed`")
    system = run.system(read_json(folder / ABOUT)["system"])
    encoder = run.encoder(system)
    index = load_index(folder / "index", embedder=encoder.identity)
    picture: bytes | str = b""
    if image is not None:
        if not image.is_file():
            raise AfmrlError(f"there is no picture {image}")
        picture = image.read_bytes()
    query = Catalogue("query", (Listing("query", "query", text or "", picture),))
    builder = run.rows(query)
    attributes = ""
    if text is not None and image is not None and system.generator is not None:
        attributes = _read_off(run, system.generator, builder)
    row = builder.embedder(0, attributes or None, title=text is not None, picture=image is not None)
    result = index.search(encoder.embed_rows(builder, [row]), k)
    lines = read_lines(folder / "listings.jsonl")
    return Found(
        [
            {"score": round(float(score), 4), **json.loads(lines[int(place)])}
            for place, score in zip(result.positions[0], result.scores[0], strict=True)
        ],
        attributes,
    )


def _read_off(run: FinishedRun, generator: str, builder: RowBuilder) -> str:
    """Attributes of the one listing of `builder`."""
    batches = write_attributes(*run.model(generator), builder, [0], mesh=run.mesh, batch_size=1)
    ((_, text, malformed),) = next(iter(batches))
    return salvage_attributes(text) if malformed else text
