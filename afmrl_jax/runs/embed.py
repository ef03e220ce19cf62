"""Embeds a catalogue to a searchable folder in chunks; if killed, it resumes after the last one."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.catalogue.pictures import DECODING
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError
from afmrl_jax.inference.annotate import annotate_catalogue
from afmrl_jax.inference.chunks import CHUNK_BATCHES, decoded_chunks
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.inference.systems import System
from afmrl_jax.models.architecture import identity
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.vector_file import VectorFile, remove_vectors
from afmrl_jax.runs.earlier import ROWS, Earlier
from afmrl_jax.runs.embedded import (
    ABOUT,
    INDEX,
    LISTINGS,
    About,
    contents_of,
    embedded_files,
    shown_line,
)
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.outputs import only_writer, require_own_output
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.training.annotate import require_attributes_file

COMMAND = "afmrl embed"
FROM_FILE = "file"
"""In place of a generator's identity, for attributes that the user gave."""


def embed_catalogue(
    run: FinishedRun,
    system_name: str | None,
    catalogue: Catalogue,
    out: Path,
    *,
    attributes: Path | None = None,
    settings: IndexSettings | None = None,
    update: bool = False,
) -> None:
    """Write a folder with an index of a catalogue and the listings that results show.

    Vectors go to a mapped file next to `out`, and only a few batches of pictures are in memory, so
    the size of the catalogue does not matter until the index is built. The folder is exchanged as a
    whole at the end.

    Args:
        run: has the embedder, and the generator if the embedder reads attributes.
        system_name: row of the results table; None for the last.
        catalogue: its listings.
        out: the folder; the output of an earlier call is replaced, nothing else is.
        attributes: a file that the generator wrote; None to write it now.
        settings: of the index; None for the exact one, or with `update` for that of the folder.
        update: take over the vectors, and attributes, of listings whose title, picture and
            attributes are those of an earlier call, and embed only the others.

    Raises:
        ConfigError: `out` exists and was not written by an earlier call.
        CatalogueError: a picture cannot be used, or listings have no attributes in the file.
        RunError: another process writes to `out`; or, with `update`, the folder there is damaged,
            or of another embedder, system or settings.
    """
    require_own_output(out, COMMAND, folder=embedded_files)
    with only_writer(out, COMMAND):
        require_own_output(out, COMMAND, folder=embedded_files)
        system = run.system(system_name)
        encoder = run.encoder(system)
        about = About(
            system.name,
            catalogue.name,
            encoder.identity,
            _reads(run),
            settings=settings or IndexSettings(),
        )
        contents = contents_of(catalogue.listings)
        earlier = None
        if update and (out / ABOUT).is_file():
            # The default says nothing about which index is wanted.
            earlier = Earlier.read(out, about, strict=about.settings != IndexSettings())
            about = dataclasses.replace(about, settings=earlier.about.settings)
        texts, writer = _texts(run, system, catalogue, contents, attributes, out, earlier)
        about = dataclasses.replace(about, attributes=writer)
        _write(run, encoder, catalogue, out, about, contents, texts, earlier)


def _reads(run: FinishedRun) -> str:
    """A hash of what, besides the weights, turns a listing into a vector."""
    settings = [dataclasses.asdict(x) for x in (run.config.image, run.config.text)]
    found = [DECODING, *settings]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _texts(
    run: FinishedRun,
    system: System,
    catalogue: Catalogue,
    contents: Sequence[str],
    attributes: Path | None,
    out: Path,
    earlier: Earlier | None,
) -> tuple[Mapping[str, str] | None, str | None]:
    """Attributes by listing id and who wrote them; None twice if the system reads none."""
    if system.generator is None:
        return None, None
    if attributes is not None:
        return _known(read_attributes(attributes), catalogue, attributes), FROM_FILE
    # Next to the folder, for other commands.
    path = out.with_name(f"{out.name}.attributes.jsonl")
    require_attributes_file(path)
    model = run.model(system.generator)
    writer, known = identity(*model), None
    if earlier is not None:
        earlier.require_generator(writer)
        known = earlier.attributes(catalogue.column("listing_id"), contents)
    # A killed call that saw other titles or pictures must not be continued.
    key = "-" + _digest(contents)[:8]
    texts = annotate_catalogue(
        run, system.generator, catalogue, path, model=model, known=known, key=key
    )
    for left in path.parent.glob(f"{glob.escape(path.name)}.{writer}-*.partial"):
        left.unlink()
    return _known(texts, catalogue, path), writer


def _known(texts: Mapping[str, str], catalogue: Catalogue, path: Path) -> Mapping[str, str]:
    missing = [x for x in catalogue.column("listing_id") if x not in texts]
    if missing:
        raise CatalogueError(
            f"{path} has no attributes of listing {missing[0]!r} and {len(missing) - 1} more; "
            "annotate the same listings, or leave --attributes out"
        )
    return texts


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(
    run: FinishedRun,
    encoder: Encoder,
    catalogue: Catalogue,
    out: Path,
    about: About,
    contents: Sequence[str],
    texts: Mapping[str, str] | None,
    earlier: Earlier | None,
) -> None:
    """Embed what is new, and exchange the folder."""
    ids = catalogue.column("listing_id")
    found = [None if texts is None else texts[x] for x in ids]
    # What cannot be written should be said before hours of embedding.
    for x, content, text in zip(catalogue.listings, contents, found, strict=True):
        shown_line(x, content, text)
    # Where each vector is in the earlier index, or -1.
    places = np.full(len(ids), -1) if earlier is None else earlier.places(ids, contents, found)
    fresh = np.flatnonzero(places < 0)
    if earlier is not None:
        log_info(
            f"embed: {len(ids) - len(fresh)} of {len(ids)} listings are unchanged, "
            f"{earlier.gone(ids)} are gone"
        )
    key = _digest(
        [about.embedder, about.reads, *map(str, fresh), json.dumps([ids, contents, found])]
    )
    work = out.with_name(f".{out.name}.vectors")
    values = _embed(run, encoder, catalogue, found, fresh, work, key)
    if earlier is not None:
        values = _merged(work / "all", key, earlier, places, values)
    with atomic_path(out) as temporary:
        temporary.mkdir()
        index = Index.build(values, ids, settings=about.settings, embedder=about.embedder)
        index.save(temporary / INDEX)
        with (temporary / LISTINGS).open("wb") as file:
            for x, content, text in zip(catalogue.listings, contents, found, strict=True):
                file.write(shown_line(x, content, text))
        about.write(temporary)
    remove_vectors(work / "all")
    remove_vectors(work)


def _embed(
    run: FinishedRun,
    encoder: Encoder,
    catalogue: Catalogue,
    texts: Sequence[str | None],
    fresh: np.ndarray,
    work: Path,
    key: str,
) -> np.ndarray:
    """Vectors of the listings at the places `fresh`, float32 [n d]; existing ones are kept."""
    count, dim = len(fresh), encoder.architecture.config.text.hidden_dim
    if not count:
        return np.empty((0, dim), np.float32)
    vectors = VectorFile(work, (count, dim), key)
    if vectors.done:
        log_info(f"embed: resumes after {vectors.done} listings")
    size = CHUNK_BATCHES * encoder.batch_size

    def builder_of(begin: int, end: int) -> RowBuilder:
        chosen = tuple(catalogue.listings[int(n)] for n in fresh[begin:end])
        return run.rows(Catalogue(catalogue.name, chosen))

    def row(builder: RowBuilder, place: int, number: int) -> Row:
        return builder.embedder(place, texts[int(fresh[number])])

    chunks = decoded_chunks(count, size, builder_of, row, begin=vectors.done)
    with Progress("embed", count, vectors.done) as progress:
        for builder, rows in chunks:
            vectors.append(encoder.embed_rows(builder, rows))
            progress.update(vectors.done)
    return vectors.values


def _merged(
    work: Path, key: str, earlier: Earlier, places: np.ndarray, new: np.ndarray
) -> np.ndarray:
    """All vectors: those of the earlier index, and the new ones in the order of the listings."""
    out = VectorFile(work, (len(places), earlier.dim), key)
    number = np.cumsum(places < 0) - 1
    while out.done < len(places):
        chosen = slice(out.done, out.done + ROWS)
        block = np.empty((len(places[chosen]), earlier.dim), np.float32)
        kept = places[chosen] >= 0
        block[kept] = earlier.vectors(places[chosen][kept])
        block[~kept] = new[number[chosen][~kept]]
        out.append(block)
    return out.values
