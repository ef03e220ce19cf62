"""Embeds a catalogue to a searchable folder in chunks; if killed, it resumes after the last one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.inference.annotate import annotate_catalogue
from afmrl_jax.inference.chunks import CHUNK_BATCHES, decoded_chunks
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.vector_file import VectorFile
from afmrl_jax.runtime.files import atomic_path, disk_full, file_hash, is_disk_full, write_json
from afmrl_jax.runtime.progress import Progress, log_info

ABOUT = "embedded.json"
LISTINGS = "listings.jsonl"


def embed_catalogue(
    run: FinishedRun,
    system_name: str | None,
    catalogue: Catalogue,
    out: Path,
    *,
    attributes: Path | None = None,
    settings: IndexSettings | None = None,
) -> None:
    """Write a folder with an index of a catalogue and the listings that results show.

    Vectors go to a mapped file next to `out`, and only a few batches of pictures are in memory, so
    the size of the catalogue does not matter until the index is built.

    Args:
        run: has the embedder, and the generator if the embedder reads attributes.
        system_name: row of the results table; None for the last.
        catalogue: its listings.
        out: the folder; the output of an earlier call is replaced, nothing else is.
        attributes: a file that the generator wrote; None to write it now.
        settings: of the index.

    Raises:
        ConfigError: `out` exists and was not written by an earlier call.
        CatalogueError: a picture cannot be used, or listings have no attributes in the file.
    """
    require_replaceable(out)
    system = run.system(system_name)
    encoder = run.encoder(system)
    texts: Mapping[str, str] | None = None
    if system.generator is not None:
        if attributes is None:
            # Next to the folder, so that a second call need not write them again.
            attributes = out.with_name(f"{out.name}.attributes.jsonl")
            annotate_catalogue(run, system.generator, catalogue, attributes)
        texts = _known(read_attributes(attributes), catalogue, attributes)
    key = [encoder.identity, catalogue.fingerprint, file_hash(attributes) if attributes else ""]
    work = out.with_name(f".{out.name}.vectors")
    vectors = _embed(run, encoder, catalogue, texts, work, "-".join(key))
    ids = catalogue.column("listing_id")
    try:
        with atomic_path(out) as temporary:
            temporary.mkdir()
            index = Index.build(vectors.values, ids, settings=settings, embedder=encoder.identity)
            index.save(temporary / "index")
            with (temporary / LISTINGS).open("w", encoding="utf-8") as file:
                for x in catalogue.listings:
                    file.write(json.dumps(_shown(x, texts), ensure_ascii=False) + "\n")
            write_json(temporary / ABOUT, {"system": system.name, "catalogue": catalogue.name})
    except OSError as error:
        raise (disk_full(out) if is_disk_full(error) else error) from error
    shutil.rmtree(work)


def require_replaceable(out: Path) -> None:
    """Refuse a path that `embed_catalogue` must not replace.

    Raises:
        ConfigError: it is a file, or a folder that is neither empty nor an embedded catalogue.
    """
    if not out.exists() or (out.is_dir() and ((out / ABOUT).is_file() or not any(out.iterdir()))):
        return
    raise ConfigError(
        f"{out} was not written by `afmrl embed` (it has no {ABOUT}) and would be replaced; choose "
        "another --out, or remove it first"
    )


def _known(texts: Mapping[str, str], catalogue: Catalogue, path: Path) -> Mapping[str, str]:
    missing = [x for x in catalogue.column("listing_id") if x not in texts]
    if missing:
        raise CatalogueError(
            f"{path} has no attributes of listing {missing[0]!r} and {len(missing) - 1} more; "
            "annotate the same listings, or leave --attributes out"
        )
    return texts


def _shown(x: Listing, texts: Mapping[str, str] | None) -> dict[str, str]:
    shown = {"listing_id": x.listing_id, "product_id": x.product_id, "title": x.title}
    return shown if texts is None else shown | {"attributes": texts.get(x.listing_id, "")}


def _embed(
    run: FinishedRun,
    encoder: Encoder,
    catalogue: Catalogue,
    texts: Mapping[str, str] | None,
    work: Path,
    key: str,
) -> VectorFile:
    """All vectors, in the order of the listings; existing ones are kept."""
    count, dim = len(catalogue), encoder.architecture.config.text.hidden_dim
    digest = hashlib.sha256(key.encode()).hexdigest()
    vectors = VectorFile(work, (count, dim), digest)
    if vectors.done:
        log_info(f"embed: resumes after {vectors.done} listings")
    size, found = CHUNK_BATCHES * encoder.batch_size, texts or {}

    def builder_of(begin: int, end: int) -> RowBuilder:
        return run.rows(Catalogue(catalogue.name, catalogue.listings[begin:end]))

    def row(builder: RowBuilder, place: int, number: int) -> Row:
        del number
        return builder.embedder(place, found.get(builder.listings[place].listing_id))

    chunks = decoded_chunks(count, size, builder_of, row, begin=vectors.done)
    with Progress("embed", count, vectors.done) as progress:
        for builder, rows in chunks:
            vectors.append(encoder.embed_rows(builder, rows))
            progress.update(vectors.done)
    return vectors
