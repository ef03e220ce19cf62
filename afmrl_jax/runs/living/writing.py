"""Adding listings to an embedded catalogue: only what is new or changed is embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.catalogue.thumbnails import thumbnail
from afmrl_jax.errors import CatalogueError, RunError
from afmrl_jax.inference.chunks import CHUNK_BATCHES
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.models.architecture import identity
from afmrl_jax.runs.embedded import About, content_of, line_of, reads_of
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runtime.progress import Progress

COMMAND = "afmrl index"
FROM_FILE = "file"
"""`About.attributes` of a folder whose attributes were given in a file."""


@dataclass(frozen=True)
class Added:
    """What became of listings that were added."""

    embedded: int
    """New, or with another title, picture or attributes."""
    rewritten: int
    """With another price or the like, for which nothing is embedded."""
    same: int


def require_fitting(run: FinishedRun, about: About, folder: Path) -> None:
    """Check that a run turns listings into vectors as it did for a folder.

    Raises:
        RunError: its settings of pictures and texts are others.
    """
    if about.reads != reads_of(run):
        raise RunError(
            f"{folder} was embedded with other settings of pictures and texts than those of "
            f"{run.folder}; use the run that embedded it"
        )


def entry_of(
    listing: Listing,
    pictures: Sequence[bytes],
    vector: np.ndarray,
    text: str | None,
    side: int | None,
) -> Entry:
    """A listing as an index keeps it.

    Args:
        listing: with its texts.
        pictures: its encoded pictures, as many as models read; one at least.
        vector: float32 [d], of length 1.
        text: the attributes that the embedder read; None if it reads none.
        side: pixels of the thumbnail's longer side; None for none.
    """
    line = line_of(listing, content_of(listing, pictures), text)
    return Entry(line, vector, None if side is None else thumbnail(pictures[0], side))


def add_listings(
    run: FinishedRun, catalogue: Catalogue, folder: Path, *, attributes: Path | None = None
) -> Added:
    """Add the listings of a catalogue to an embedded one; those of a known id replace it.

    They are written in parts, each on disk before the next; a killed call is simply repeated.

    Args:
        run: that embedded the folder.
        catalogue: the listings.
        folder: what `embed_catalogue` wrote.
        attributes: a file that the generator wrote, for a folder that was embedded with one.

    Raises:
        RunError: the folder is another run's, damaged, or written by another process.
        CatalogueError: a picture cannot be used, or a listing has no attributes in the file.
    """
    about = About.read(folder)
    embedder = Embedder.of(run, run.system(about.system))
    require_fitting(run, about, folder)
    given = None if attributes is None else read_attributes(attributes)
    _require_source(about, given, folder)
    if given is None and about.attributes is not None:
        require_writer(embedder, about, folder)
    with LivingIndex(
        folder, embedder=embedder.identity, mesh=run.mesh, writer=f"{COMMAND} add"
    ) as index:
        adder = _Adder(index, embedder, given)
        size = CHUNK_BATCHES * embedder.encoder.batch_size
        with Progress("add", len(catalogue)) as progress:
            for begin in range(0, len(catalogue), size):
                end = min(begin + size, len(catalogue))
                adder.add([catalogue.listings[n] for n in range(begin, end)])
                progress.update(end)
    return Added(adder.embedded, adder.rewritten, adder.same)


def _require_source(about: About, given: Mapping[str, str] | None, folder: Path) -> None:
    """Check that attributes come from a file if the folder's do."""
    if (about.attributes == FROM_FILE) != (given is not None):
        needs = "attributes of a file: give --attributes" if given is None else "none of a file"
        raise RunError(f"{folder} has {needs}{'' if given is None else ': leave --attributes out'}")


def require_writer(embedder: Embedder, about: About, folder: Path) -> None:
    """Check that an embedder's generator wrote a folder's attributes.

    Raises:
        RunError: another one did.
    """
    writer = identity(embedder.generator.architecture, embedder.generator.params)
    if writer != about.attributes:
        raise RunError(
            f"{folder} has attributes of the generator {about.attributes}, not of {writer}; "
            "use the run that embedded it"
        )


class _Adder:
    """Counts what it adds."""

    def __init__(self, index: LivingIndex, embedder: Embedder, given: Mapping[str, str] | None):
        self._index, self._embedder, self._given = index, embedder, given
        self._most = embedder.image.max_pictures
        self.embedded = self.rewritten = self.same = 0

    def add(self, listings: Sequence[Listing]) -> None:
        """Add some listings; on disk when this returns."""
        entries, new = list[Entry](), list[tuple[Listing, tuple[bytes, ...]]]()
        for x in listings:
            with x.all_encoded(self._most) as pictures:
                known = self._known(x, pictures)
                if known is None:
                    new.append((x, pictures))
                    continue
            entry, same = known
            self.same += same
            self.rewritten += not same
            if not same:
                entries.append(entry)
        entries += self._embed(new)
        self.embedded += len(new)
        self._index.put(entries)

    def _known(self, x: Listing, pictures: Sequence[bytes]) -> tuple[Entry, bool] | None:
        """The entry of a listing that need not be embedded, and whether it is there already."""
        if x.listing_id not in self._index:
            return None
        entry = self._index.entry(x.listing_id)
        text = entry.line.get("attributes")
        if self._given is not None and text != self._text(x):
            return None
        line = line_of(x, content_of(x, pictures), text)
        if line["content"] != entry.line.get("content"):
            return None
        same = line == {name: y for name, y in entry.line.items() if name != "thumbnail"}
        return Entry(line, entry.vector, entry.thumbnail), same

    def _text(self, x: Listing) -> str | None:
        if self._given is None:
            return None
        if x.listing_id not in self._given:
            raise CatalogueError(
                f"listing {x.listing_id!r} has no attributes in the file; annotate the same "
                "listings"
            )
        return self._given[x.listing_id]

    def _embed(self, new: Sequence[tuple[Listing, tuple[bytes, ...]]]) -> list[Entry]:
        if not new:
            return []
        items: list[dict[str, object]] = []
        for x, pictures in new:
            item: dict[str, object] = {"text": x.title, "image": pictures}
            text = self._text(x)
            items.append(item if text is None else {**item, "attributes": text})
        if self._given is None:
            vectors, texts = self._embedder.encode_with_attributes(items)
        else:
            vectors = self._embedder.encode(items, label=None)
            texts = [self._text(x) or "" for x, _ in new]
        side, reads = self._index.about.thumbnails, self._index.about.attributes is not None
        return [
            entry_of(x, pictures, vector, text if reads else None, side)
            for (x, pictures), vector, text in zip(new, vectors, texts, strict=True)
        ]
