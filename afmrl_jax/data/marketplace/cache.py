"""Marketplaces that were drawn before, in the user's cache, one folder for each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.data.marketplace.build import IDEAL, LISTINGS, draw_marketplace
from afmrl_jax.errors import CatalogueError, RunError
from afmrl_jax.runtime.files import atomic_path, locked
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.private_folder import private_cache
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.seals import Seal, require_sealed

VARIABLE = "AFMRL_MARKETPLACE_CACHE"
"""Environment variable with the folder to use in place of the user's cache."""
VERSION = 1
"""Of the generator: raised with every change of what it draws."""
ABOUT = "about.json"


@dataclass(frozen=True)
class About:
    """What a folder holds, and the seals of its files."""

    settings: dict[str, Any]
    version: int
    pillow: str
    seals: dict[str, Seal]


def cache_name(settings: MarketplaceSettings) -> str:
    """The folder's name: a hash of all that its bytes depend on.

    Another version of Pillow may draw a line, or encode a JPEG, a little differently.
    """
    content = [dataclasses.asdict(settings), VERSION, PIL.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def marketplace_folder(settings: MarketplaceSettings) -> Path:
    """The folder with a marketplace, which is drawn if it is not there or was damaged.

    Two processes that ask for it at once draw it once.

    Raises:
        CatalogueError: the cache is not to be trusted, cannot be written, or drawing failed.
    """
    home = private_cache(
        "marketplace", VARIABLE, kept="the marketplace", content="pictures", error=CatalogueError
    )
    folder = home / cache_name(settings)
    if folder.exists() and _damage(folder) is None:
        return folder

    def waiting() -> None:
        log_info(f"waiting for another process that draws {folder}")

    with locked(home / f".{folder.name}.lock", waiting):
        if folder.exists():
            damage = _damage(folder)
            if damage is None:
                return folder
            log_info(f"warning: the marketplace is drawn again, because {damage}")
        else:
            log_info(f"drawing the marketplace, once, into {folder}")
        write_marketplace(settings, folder)
    return folder


def write_marketplace(settings: MarketplaceSettings, folder: Path) -> None:
    """Draw a marketplace into a folder, completely or not at all."""
    with atomic_path(folder, everywhere=True) as unfinished:
        unfinished.mkdir()
        draw_marketplace(settings, unfinished)
        seals = {name: dataclasses.asdict(Seal.of(unfinished / name)) for name in (LISTINGS, IDEAL)}
        about = {
            "settings": dataclasses.asdict(settings),
            "version": VERSION,
            "pillow": PIL.__version__,
            "seals": seals,
        }
        text = json.dumps(about, indent=1)
        (unfinished / ABOUT).write_text(text + "\n", encoding="utf-8")


def _damage(folder: Path) -> str | None:
    """What is wrong with a folder, None if its files are those that were written."""
    try:
        about = read_checked(folder / ABOUT, About)
        require_sealed(folder, about.seals, remedy="")
    except (RunError, OSError) as error:
        return str(error).removesuffix("; ").partition("; delete")[0]
    return None if {LISTINGS, IDEAL} <= about.seals.keys() else f"{folder} lacks files"


@dataclass(frozen=True)
class Ideal:
    """What a perfect model could reach on a catalogue's test split, and what chance gives."""

    queries: int
    gallery: int
    tasks: dict[str, dict[str, dict[str, float]]]
    """By task, `ideal` or `chance`, and metric, in percent."""


def read_ideal(folder: Path) -> Ideal:
    """The ideal of a drawn catalogue, as it was written with it.

    Raises:
        CatalogueError: the folder has no such file, or a broken one.
    """
    remedy = "give the folder of a drawn marketplace"
    return read_checked(folder / IDEAL, Ideal, error=CatalogueError, remedy=remedy)
