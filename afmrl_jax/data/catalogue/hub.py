"""Data sets of the Hugging Face hub, `hf://user/set`, by the hub's own client and cache."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from afmrl_jax.errors import CatalogueError, ConfigError

PREFIX = "hf://"
NAME = re.compile(
    r"hf://(datasets/)?(?P<set>[\w.-]+/(?P<name>[\w.-]+))(@(?P<revision>[^/#]+))?(/(?P<inside>[^#]+))?"
)


def set_name(name: str) -> str:
    """The name of a data set without its owner, its revision and what is inside."""
    found = NAME.fullmatch(name)
    return found["name"] if found else name


def hub_folder(name: str) -> Path:
    """The folder, or the file, of a data set of the hub; downloaded, or as an earlier call did.

    Args:
        name: `hf://user/set`, `hf://user/set@revision` (`/` in a revision as `%2F`), or either with
            the path of a folder or file inside.

    Raises:
        ConfigError: it is no such name.
        CatalogueError: it is not on this machine and cannot be downloaded, or has no such path.
    """
    found = NAME.fullmatch(name)
    inside = (found["inside"] or "").strip("/") if found else ""
    if found is None or ".." in Path(inside).parts:
        raise ConfigError(f"{name[:200]} is no name of the hub; write hf://user/set@revision#split")
    # Imported here: it takes a while, and most catalogues do not need it.
    from huggingface_hub import snapshot_download

    revision = unquote(found["revision"]) if found["revision"] else None
    wanted = [inside, f"{inside}/*"] if inside else None
    try:
        folder = snapshot_download(
            found["set"], repo_type="dataset", revision=revision, allow_patterns=wanted
        )
    except Exception as error:  # Of the network, of the hub, or of the client.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        at = f" --revision {revision}" if revision else ""
        raise CatalogueError(
            f"{name} cannot be downloaded ({reason}); where there is a network, `hf download "
            f"{found['set']} --repo-type dataset{at} --local-dir FOLDER` gets it, and --catalogue "
            "takes FOLDER"
        ) from error
    path = Path(folder) / inside
    if not path.exists():
        raise CatalogueError(f"{name}: the data set has no {inside!r}; correct the path")
    return path


def picture_root(folder: Path) -> Path:
    """Where the pictures of a folder may lie once links are followed: it, or the hub's cache of it.

    In the cache, a snapshot's files are links to `blobs/` beside all snapshots.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.parent.name == "snapshots" and (place.parent.parent / "blobs").is_dir():
            return place.parent.parent
    return folder
