"""A small shop of drawn garments, embedded by the shipped models into the user's cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.config.marketplace import MARKETPLACE
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.marketplace.cache import cache_name
from afmrl_jax.data.marketplace.prices import price_of
from afmrl_jax.errors import RunError
from afmrl_jax.inference.shipped import BARE, WITH_LISTS, ShippedModels
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runs.embedded import ABOUT, FORMAT, About, reads_of
from afmrl_jax.runtime.files import locked
from afmrl_jax.runtime.private_folder import private_cache
from afmrl_jax.runtime.progress import log_info

VARIABLE = "AFMRL_DEMO_CACHE"
"""Environment variable with the folder to use in place of the user's cache."""
VERSION = 1
"""Raised with every change of what is embedded."""
SETTINGS = MarketplaceSettings(
    seed=29, distill_families=1, train_families=1, reward_families=3, test_families=40, pixels=192
)
"""A few hundred listings, of combinations that no model was trained on; their pictures are larger
than models read, so that people see something."""
SIDE = 192
"""Pixels of the thumbnails."""


def demo_shop() -> Catalogue:
    """The listings, with a price and the seller's name as its brand."""
    drawn = load_catalogue(MARKETPLACE, marketplace=SETTINGS).subset("test")
    return Catalogue("demo-shop", tuple(_offered(x) for x in drawn.listings))


def _offered(x: Listing) -> Listing:
    seller = x.seller or ""
    price = price_of(x.attributes or {}, seller)
    return dataclasses.replace(x, extra={"price": price, "currency": "EUR", "brand": seller})


def demo_indexes(run: ShippedModels) -> tuple[Path, Path]:
    """The folders of the shop's index, with and without the generator's lists.

    What is not there yet is embedded, which a killed call has begun and the next one ends. The
    folders depend on the weights and on the catalogue by their names.

    Raises:
        RunError: the cache is not to be trusted, or cannot be written.
    """
    home = private_cache(
        "demo", VARIABLE, kept="the demo's index", content="an index", error=RunError
    )
    folder = home / _name(run)
    systems = {WITH_LISTS: folder / "index", BARE: folder / "without-lists"}

    def waiting() -> None:
        log_info(f"waiting for another process that embeds the demo's shop into {folder}")

    with locked(home / f".{folder.name}.lock", waiting):
        missing = [name for name, path in systems.items() if not _is_whole(path)]
        if missing:
            folder.mkdir(exist_ok=True)
            shop = demo_shop()
            log_info(f"embedding {len(shop)} listings, once, into {folder}")
            for name in missing:
                shutil.rmtree(systems[name], ignore_errors=True)
                embed_catalogue(run, name, shop, systems[name], thumbnails=SIDE)
    return systems[WITH_LISTS], systems[BARE]


def _is_whole(folder: Path) -> bool:
    if not (folder / ABOUT).is_file():
        return False
    try:
        About.read(folder)
    except RunError as error:
        log_info(f"warning: the demo's shop is embedded again, because {error}")
        return False
    return True


def _name(run: ShippedModels) -> str:
    """A hash of all that the vectors and listings depend on."""
    content = [run.manifests, cache_name(SETTINGS), reads_of(run), SIDE, VERSION, FORMAT]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
