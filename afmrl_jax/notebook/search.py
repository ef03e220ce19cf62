"""A search with a photo, in a separate process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.notebook.commands import afmrl
from afmrl_jax.reporting import fragments
from afmrl_jax.runs.search import Found


def search(run: Path, index: Path, photo: Path, words: str | None = None, k: int = 5) -> Found:
    """The listings nearest to a photo, or to a photo and words.

    Args:
        run: a finished run.
        index: what `afmrl embed` wrote with it.
        photo: the picture's file.
        words: as in a title; with them the generator reads attributes off the photo, and the
            embedder gets all three.
        k: how many listings.

    Raises:
        RunError: the search failed, for instance because the file is not a picture.
    """
    query = {"text": words or None, "image": str(photo.resolve())}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "queries.jsonl"
        file.write_text(json.dumps(query) + "\n", encoding="utf-8")
        printed = afmrl("search", "--run", run, "--index", index, "--queries", file, "-k", k)
    return Found(**json.loads(printed.splitlines()[-1]))


def show(found: Found, photo: Path, words: str | None, catalogue: Catalogue) -> str:
    """What was found, as HTML with the pictures of the catalogue that was searched."""
    wanted = {x["listing_id"] for x in found.results}
    ids = catalogue.column("listing_id")
    places = [n for n, listing_id in enumerate(ids) if listing_id in wanted]
    pictures = {ids[n]: catalogue.listings[n].read_image_bytes() for n in places}
    return fragments.found(photo.read_bytes(), words, found.attributes, found.results, pictures)
