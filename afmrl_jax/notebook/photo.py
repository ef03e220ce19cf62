"""A photo from the reader of the notebook, or one from a catalogue."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.runtime.files import atomic_path

if TYPE_CHECKING:
    from ipywidgets import FileUpload


def example(catalogue: Catalogue, folder: Path, seed: int = 0) -> tuple[Path, Listing]:
    """A picture of a listing of the test split, as a file, and the listing.

    Args:
        catalogue: one with a test split.
        folder: where the file is written.
        seed: chooses the listing.
    """
    listings = catalogue.subset("test").listings
    listing = listings[int(np.random.default_rng(seed).integers(len(listings)))]
    picture = decode(listing.read_image_bytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return _write(folder, f"{listing.listing_id}.png", file.getvalue()), listing


def _write(folder: Path, name: str, data: bytes) -> Path:
    """Write a file in the folder, whatever path its name contains."""
    safe = re.sub(r"[^\w.-]+", "_", name.replace("\\", "/").rpartition("/")[2]).lstrip(".")
    path = folder / (safe or "photo")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


class Upload:
    """Asks for a photo: with Colab's file dialog, which waits for an answer, or with a button.

    If neither is available, it does not ask.

    Args:
        folder: where an uploaded file is written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._given: Mapping[str, bytes] = {}
        self._button: FileUpload | None = None
        try:
            from google.colab import files
        except ImportError:
            self._show_button()
        else:
            self._given = files.upload()

    def _show_button(self) -> None:
        try:
            from ipywidgets import FileUpload
        except ImportError:
            return
        from IPython.display import display

        self._button = FileUpload(accept="image/*", multiple=False)
        display(self._button)

    @property
    def path(self) -> Path | None:
        """The uploaded photo; None if there is none."""
        given = dict(self._given)
        if self._button is not None:
            given = {x["name"]: bytes(x["content"]) for x in self._button.value}
        for name, data in given.items():
            return _write(self._folder, name, data)
        return None
