"""The hashes of a folder's weights: written with them, and compared when they are read."""

from __future__ import annotations

from pathlib import Path

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import file_hash, write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.seals import check_hashes

MANIFEST = "manifest.json"
"""Hashes of a folder's weights, which stand for the model where its identity is asked for."""
_REMEDY = "copy the folder again, or run again the stage that wrote it"


def write_manifest(folder: Path) -> None:
    """Record the weights that lie in a folder."""
    weights = sorted(folder.glob("*.safetensors"))
    write_json(folder / MANIFEST, {x.name: file_hash(x) for x in weights})


def require_manifest(folder: Path) -> None:
    """See that a folder that this package wrote has its hashes.

    Raises:
        RunError: it has none, so nothing could tell whether its weights have changed.
    """
    if not (folder / MANIFEST).is_file():
        raise RunError(
            f"{folder} has no {MANIFEST}, so its weights cannot be checked; copy the run again, or "
            f"delete {folder.parent} and run again"
        )


def check_weights(folder: Path) -> None:
    """Compare the weights of a folder with its manifest; a downloaded folder has none.

    Raises:
        RunError: a file is missing, has changed, or is not in the manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    wanted = read_checked(path, dict[str, str], remedy=_REMEDY)
    odd = sorted({x.name for x in folder.glob("*.safetensors")} - set(wanted))
    odd += [x for x in wanted if Path(x).name != x or x in ("", "..")]
    if odd:
        raise RunError(f"{path} and the folder do not agree on {odd[0]!r}; {_REMEDY}")
    check_hashes(folder, wanted, _REMEDY)
