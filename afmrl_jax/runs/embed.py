"""Embeds a catalogue to a searchable folder in chunks; if killed, it resumes after the last one."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.catalogue.thumbnails import SIDES
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError, ConfigError, RunError
from afmrl_jax.inference.annotate import annotate_catalogue
from afmrl_jax.inference.chunks import CHUNK_BATCHES, decoded_chunks
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.inference.systems import System
from afmrl_jax.models.architecture import identity
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.vector_file import VectorFile, remove_vectors
from afmrl_jax.runs.earlier import Earlier
from afmrl_jax.runs.embedded import (
    ABOUT,
    INDEX,
    LOG,
    About,
    content_of,
    contents_of,
    embedded_files,
    encoded_line,
    line_of,
    reads_of,
)
from afmrl_jax.runs.thumbnails import write_lines
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.outputs import only_writer, require_own_output
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.training.annotate import require_attributes_file

COMMAND = "afmrl embed"
FROM_FILE = "file"
"""In place of a generator's identity, for attributes that the user gave."""
PART = 65_536
"""Most listings whose vectors are written at a time."""


def embed_catalogue(
    run: FinishedRun,
    system_name: str | None,
    catalogue: Catalogue,
    out: Path,
    *,
    attributes: Path | None = None,
    settings: IndexSettings | None = None,
    thumbnails: int | None = None,
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
        thumbnails: keep small pictures whose longer side has so many pixels; None for none, or with
            `update` for what the folder has.
        update: take over the vectors, and attributes, of listings whose title, picture and
            attributes are those of an earlier call, and embed only the others.

    Raises:
        ConfigError: `out` exists and was not written by an earlier call, or thumbnails of that size
            are not made.
        CatalogueError: a picture cannot be used, or listings have no attributes in the file.
        RunError: another process writes to `out`; or, with `update`, the folder there is damaged,
            or of another embedder, system or settings.
    """
    if thumbnails is not None and not SIDES[0] <= thumbnails <= SIDES[1]:
        raise ConfigError(f"thumbnails of {thumbnails} pixels: give {SIDES[0]} to {SIDES[1]}")
    require_own_output(out, COMMAND, folder=embedded_files)
    with only_writer(out, COMMAND):
        require_own_output(out, COMMAND, folder=embedded_files)
        _require_no_changes(out)
        system = run.system(system_name)
        encoder = run.encoder(system)
        about = About(
            system.name,
            catalogue.name,
            encoder.identity,
            reads_of(run),
            settings=settings or IndexSettings(),
            thumbnails=thumbnails,
        )
        earlier = None
        if update and (out / ABOUT).is_file():
            # The default says nothing about which index is wanted.
            earlier = Earlier.read(out, about, strict=about.settings != IndexSettings())
            side = earlier.about.thumbnails if thumbnails is None else thumbnails
            about = replace(about, settings=earlier.about.settings, thumbnails=side)
        texts, writer, contents = _texts(run, system, catalogue, attributes, out, earlier)
        about = replace(about, attributes=writer)
        _write(run, encoder, catalogue, out, about, contents, texts, earlier)


def _require_no_changes(out: Path) -> None:
    """Refuse to drop what was added and removed since the folder was written.

    Raises:
        RunError: there is such a log.
    """
    log = out / LOG
    if log.is_file() and log.stat().st_size:
        raise RunError(
            f"{log} holds changes by `afmrl index` or `afmrl serve` that the catalogue may lack; "
            f"take them into the folder with `afmrl index compact --index {out}`, and see to it "
            "that the catalogue has them: what it lacks is dropped"
        )


def _texts(
    run: FinishedRun,
    system: System,
    catalogue: Catalogue,
    attributes: Path | None,
    out: Path,
    earlier: Earlier | None,
) -> tuple[Mapping[str, str] | None, str | None, Sequence[str] | None]:
    """Attributes by listing id and who wrote them, None twice if the system reads none.

    And `content_of` each listing, if the generator writes them: it decides which ones an earlier or
    a killed call has written.
    """
    if system.generator is None:
        return None, None, None
    if attributes is not None:
        return _known(read_attributes(attributes), catalogue, attributes), FROM_FILE, None
    contents = contents_of(catalogue.listings, run.config.image.max_pictures)
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
    return _known(texts, catalogue, path), writer, contents


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
    contents: Sequence[str] | None,
    texts: Mapping[str, str] | None,
    earlier: Earlier | None,
) -> None:
    """Embed what is new, and exchange the folder."""
    ids = catalogue.column("listing_id")
    found = [None if texts is None else texts[x] for x in ids]
    # What cannot be written should be said before hours of embedding.
    for x, text in zip(catalogue.listings, found, strict=True):
        encoded_line(line_of(x, "", text))
    known = "" if earlier is None else earlier.identity
    key = _digest([about.embedder, about.reads, known, json.dumps([ids, found])])
    work = out.with_name(f".{out.name}.vectors")
    vectors = _Embedding(run, encoder, catalogue, found, contents, earlier).vectors(work, key)
    made_of = vectors.sources
    if earlier is not None:
        same = [earlier.place_of(*x) for x in zip(ids, made_of, found, strict=True)]
        log_info(
            f"embed: {len(ids) - same.count(None)} of {len(ids)} listings are unchanged, "
            f"{earlier.gone(ids)} are gone"
        )
    with atomic_path(out) as temporary:
        temporary.mkdir()
        index = Index.build(vectors.values, ids, settings=about.settings, embedder=about.embedder)
        index.save(temporary / INDEX)
        write_lines(temporary, catalogue.listings, made_of, found, about.thumbnails, earlier)
        about.write(temporary)
    remove_vectors(work)


@dataclass(frozen=True)
class _Read:
    """A listing after its picture was read."""

    content: str
    place: int | None = None
    """Of its vector in the earlier index, if it is unchanged."""
    row: Row | None = None
    """What is embedded if it is not."""


@dataclass(frozen=True)
class _Embedding:
    """Vectors of a catalogue: new ones, and those of an earlier index."""

    run: FinishedRun
    encoder: Encoder
    catalogue: Catalogue
    texts: Sequence[str | None]
    """Attributes of each listing."""
    contents: Sequence[str] | None
    """`content_of` each listing; None if the pictures have not been read."""
    earlier: Earlier | None

    def vectors(self, work: Path, key: str) -> VectorFile:
        """All vectors, each beside the content that it was made of.

        Args:
            work: folder of the file, which may hold what a killed call has done.
            key: what the vectors depend on besides the contents.
        """
        listings = self.catalogue.listings
        shape = len(listings), self.encoder.architecture.config.text.hidden_dim
        vectors = VectorFile(work, shape, key)
        if vectors.done:
            most = self.run.config.image.max_pictures
            seen = self.contents or contents_of(listings[: vectors.done], most)
            if list(seen[: vectors.done]) != vectors.sources:
                remove_vectors(work)
                vectors = VectorFile(work, shape, key)
                log_info("embed: titles or pictures have changed; it begins anew")
            else:
                log_info(f"embed: resumes after {vectors.done} listings")
        builder = self.run.rows(Catalogue(self.catalogue.name, ()))
        size = CHUNK_BATCHES * self.encoder.batch_size
        chunks = decoded_chunks(
            len(listings), size, lambda *_: builder, self._read, begin=vectors.done
        )
        reads = chain.from_iterable(found for _, found in chunks)
        with Progress("embed", len(listings), vectors.done) as progress:
            for part in _parts(reads, size):
                vectors.append(self._embedded(builder, part), [x.content for x in part])
                progress.update(vectors.done)
        return vectors

    def _read(self, builder: RowBuilder, _: int, number: int) -> _Read:
        x = self.catalogue.listings[number]
        content = None if self.contents is None else self.contents[number]
        if content is not None and (place := self._place(x, content, number)) is not None:
            return _Read(content, place)
        # What is hashed and what is decoded are the same bytes, read once.
        with x.all_encoded(self.run.config.image.max_pictures) as pictures:
            content = content or content_of(x, pictures)
            place = self._place(x, content, number)
            if place is not None:
                return _Read(content, place)
            alone = RowBuilder.of(
                [replace(x, image=pictures[0], more_images=pictures[1:])],
                builder.tokenizer,
                builder.image,
                builder.text,
                builder.host,
            )
            return _Read(content, row=alone.embedder(0, self.texts[number]))

    def _place(self, x: Listing, content: str, number: int) -> int | None:
        if self.earlier is None:
            return None
        return self.earlier.place_of(x.listing_id, content, self.texts[number])

    def _embedded(self, builder: RowBuilder, part: Sequence[_Read]) -> np.ndarray:
        """Vectors of some listings, float32 [n d]."""
        out = np.empty((len(part), self.encoder.architecture.config.text.hidden_dim), np.float32)
        new = np.array([x.row is not None for x in part])
        if new.any():
            rows = [x.row for x in part if x.row is not None]
            out[new] = self.encoder.embed_rows(builder, rows)
        if self.earlier is not None:
            out[~new] = self.earlier.vectors([x.place for x in part if x.place is not None])
        return out


def _parts(reads: Iterable[_Read], size: int) -> Iterator[list[_Read]]:
    """Listings in parts: `size` to embed, so that batches are full, or `PART` in all."""
    part, new = list[_Read](), 0
    for x in reads:
        part.append(x)
        new += x.row is not None
        if new == size or len(part) == PART:
            yield part
            part, new = [], 0
    if part:
        yield part
