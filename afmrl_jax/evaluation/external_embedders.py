"""External embedders, as folders that sentence-transformers loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import RunError
from afmrl_jax.evaluation.baselines import unit
from afmrl_jax.runtime.progress import Progress

AT_ONCE = 256
"""Most listings whose pictures are in memory at a time."""
PIXELS_AT_ONCE = 1 << 28
"""Pixels of pictures in memory, 4 bytes each, from which on no further picture is read."""


class OutsideEmbedder:
    """A sentence-transformers folder, or a transformers one.

    As sentence-transformers does it, a transformers text model without pooling gets mean pooling
    over its tokens, and a model of texts and pictures (such as CLIP) uses its own projections.
    """

    def __init__(self, folder: Path, *, trust_code: bool = False, batch_size: int = 32):
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise RunError(
                f"{folder} is not an embedder (it has neither modules.json nor config.json); give "
                "a folder saved by sentence-transformers or transformers"
            )
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise RunError(
                f"--embedder {folder} needs sentence-transformers: pip install "
                "'afmrl-jax[embedders]'"
            ) from error
        try:
            self._model: Any = SentenceTransformer(
                str(folder), trust_remote_code=trust_code, local_files_only=True
            )
        except Exception as error:
            hint = "" if trust_code else "; a folder with its own code needs --trust-code"
            raise RunError(f"{folder} cannot be loaded as an embedder: {error}{hint}") from error
        self.name = folder.resolve().name
        self._batch_size = batch_size

    @property
    def sees(self) -> bool:
        """Whether it embeds pictures."""
        return bool(self._model.supports("image"))

    @property
    def fuses(self) -> bool:
        """Whether it embeds a picture and a text together."""
        return bool(self._model.supports(("image", "text")))

    def views(self, listings: Sequence[Listing]) -> dict[str, np.ndarray | None]:
        """Unit vectors `both`, `text` and `image` of some listings, float32 [n d].

        If the model cannot fuse, `both` is the normalized sum of the vectors of picture and title;
        if it embeds no pictures, the vector of the title.
        """
        text = self._encode(listings, lambda x: x.title, "titles")
        image = both = None
        if self.sees:
            image = self._encode(listings, lambda x: decode(x.read_image_bytes()), "pictures")
        if self.fuses:
            both = self._encode(
                listings,
                lambda x: {"text": x.title, "image": decode(x.read_image_bytes())},
                "both",
            )
        elif image is not None:
            both = unit(text + image)
        return {"both": text if both is None else both, "text": text, "image": image}

    def both(self, listings: Sequence[Listing]) -> np.ndarray:
        """Only the `both` view."""
        found = self.views(listings)["both"]
        assert found is not None
        return found

    def _encode(
        self, listings: Sequence[Listing], made: Callable[[Listing], object], what: str
    ) -> np.ndarray:
        parts = []
        with Progress(f"{self.name}: {what}", len(listings)) as progress:
            for inputs in _groups(map(made, listings)):
                parts.append(
                    self._model.encode(
                        inputs,
                        batch_size=self._batch_size,
                        convert_to_numpy=True,
                        show_progress_bar=False,
                    )
                )
                progress.update(sum(map(len, parts)))
        return unit(np.concatenate(parts).astype(np.float32))


def _groups(inputs: Iterable[object]) -> Iterator[list[object]]:
    """The inputs in lists of at most `AT_ONCE`, fewer where the pictures are large.

    A list is emptied before the next one is made, so that only one is in memory.
    """
    group: list[object] = []
    pixels = 0
    for x in inputs:
        group.append(x)
        picture = x.get("image") if isinstance(x, dict) else x
        pixels += picture.width * picture.height if isinstance(picture, Image.Image) else 0
        if len(group) == AT_ONCE or pixels >= PIXELS_AT_ONCE:
            yield group
            group.clear()
            pixels = 0
    if group:
        yield group
