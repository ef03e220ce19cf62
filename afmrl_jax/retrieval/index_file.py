"""What stands in an index's `index.json`, and checking an index's files against it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from afmrl_jax.errors import RunError
from afmrl_jax.retrieval.types import check_new
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.seals import Seal, require_sealed, seals_of
from afmrl_jax.types import JsonObject

NAME = "index.json"
FORMAT = 1
"""Since this format, the seals of the other files are kept."""
AGAIN = "embed the catalogue again"


@dataclass(frozen=True)
class IndexFile:
    """The contents of `index.json`."""

    kind: Literal["exact", "scann"]
    embedder: str
    ids: list[str]
    """By place."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of an exact index."""
    dim: int | None = None
    settings: JsonObject | None = None
    """Of ScaNN."""
    format: int = 0
    """0 for files of older versions, which have no seals."""
    files: dict[str, Seal] = field(default_factory=dict)
    """All other files of the folder, by name."""
    sha256: str = ""
    """Of all the above, in hexadecimal."""

    def write(self, folder: Path) -> None:
        """Write it last: it seals all files that are in the folder by then."""
        found = asdict(self) | {"format": FORMAT}
        found["files"] = {name: asdict(seal) for name, seal in seals_of(folder).items()}
        found["sha256"] = _hash(found)
        write_json(folder / NAME, {key: x for key, x in found.items() if x is not None})

    @classmethod
    def read(cls, folder: Path, *, embedder: str | None = None) -> IndexFile:
        """Read it, and check the folder's other files.

        Args:
            folder: of the index.
            embedder: the identity that it must have; None for any.

        Raises:
            RunError: there is no index, another embedder or version made it, or a file was changed.
        """
        if not (folder / NAME).is_file():
            raise RunError(
                f"{folder} contains no index ({NAME} is missing); run `afmrl embed` first"
            )
        found = read_checked(folder / NAME, cls, remedy=AGAIN)
        if embedder is not None and found.embedder != embedder:
            raise RunError(
                f"{folder} was built by embedder {found.embedder}, not by {embedder}; "
                "embed the catalogue again with this run"
            )
        if found.format > FORMAT:
            raise RunError(
                f"{folder} has format {found.format} of a newer version; update afmrl-jax, or "
                f"{AGAIN}"
            )
        if found.format and not found.files:
            raise RunError(f"{folder / NAME} names no files; {AGAIN}")
        if found.format and found.sha256 != _hash(asdict(found)):
            raise RunError(f"{folder / NAME} is not what was written (its hash differs); {AGAIN}")
        require_sealed(folder, found.files, remedy=AGAIN)
        try:
            check_new(found.ids)
        except RunError as error:
            raise RunError(f"{folder / NAME}: {error}") from error
        return found


def _hash(fields: JsonObject) -> str:
    kept = {key: x for key, x in fields.items() if x is not None and key != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


PATTERNS = ("*.npy", "*.pb", "*.pbtxt")
"""Files of indexes whose `index.json` does not name them."""


def index_files(folder: Path) -> set[str] | None:
    """The files of an index, by name in its folder; None if the folder holds none."""
    try:
        about = read_checked(folder / NAME, IndexFile)
    except RunError:
        return None
    older = (x.name for pattern in PATTERNS for x in folder.glob(pattern))
    return {NAME, *(about.files if about.format else older)}
