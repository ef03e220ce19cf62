"""A shop as many have one: python examples/draw_shop.py FOLDER [--seed 17].

Sixty offers of drawn garments: `products.csv` with number, title, price, address, brand and two to
four photos each, and `photos/`. Ten garments are offered twice, under two numbers, with other
photos and titles (`duplicates.csv` says which); every one has a near-twin that differs in a detail.
`new.csv` has ten garments more, and `customer.jpg` is a photo of the first one by somebody else.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.marketplace.listings import photo_of
from afmrl_jax.data.marketplace.plan import draw_families
from afmrl_jax.data.marketplace.sellers import SELLERS, Seller
from afmrl_jax.data.marketplace.titles import write_title
from afmrl_jax.data.marketplace.world import Combination, seeded

SHOP, CUSTOMER = SELLERS[0], SELLERS[5]
"""Whose studio and words they are; both write English."""
FAMILIES, TWICE, NEW = 25, 10, 5
"""Pairs of near-twins, garments that are offered twice, and pairs of twins that are new."""
PIXELS = 192


def draw(folder: Path, seed: int) -> None:
    """Write the shop."""
    settings = MarketplaceSettings(seed=seed, pixels=PIXELS, products=(2, 2))
    rng = seeded("shop", seed)
    families = list(draw_families("test", FAMILIES + NEW, settings))
    garments = [x for family in families[:FAMILIES] for x in family]
    twice = sorted(rng.permutation(len(garments))[:TWICE].tolist())
    offers = [*garments, *(garments[n] for n in twice)]
    (folder / "photos").mkdir(parents=True)
    _write(
        folder / "products.csv",
        ["sku", "title", "price", "url", "brand", "photos"],
        (_row(folder, f"g{n:03d}", x, settings) for n, x in enumerate(offers)),
    )
    pairs = ((f"g{n:03d}", f"g{len(garments) + place:03d}") for place, n in enumerate(twice))
    _write(folder / "duplicates.csv", ["sku", "same_as"], map(list, pairs))
    later = [x for family in families[FAMILIES:] for x in family]
    rows = (_row(folder, f"n{n:03d}", x, settings) for n, x in enumerate(later))
    _write(
        folder / "new.csv",
        ["sku", "title", "price", "photo"],
        ([row[0], row[1], row[2], row[5].partition("|")[0]] for row in rows),
    )
    photo = photo_of("customer", garments[0], CUSTOMER, settings)
    (folder / "customer.jpg").write_bytes(photo)


def _row(folder: Path, sku: str, garment: Combination, settings: MarketplaceSettings) -> list[str]:
    """An offer's row, whose photos are written."""
    rng = seeded(settings.seed, "offer", sku)
    names = []
    for n in range(int(rng.integers(2, 5))):
        names.append(f"photos/{sku}-{n + 1}.jpg")
        picture = photo_of(f"{sku}-{n}", garment, SHOP, settings)
        (folder / names[-1]).write_bytes(picture)
    title = _title(garment, SHOP, settings, sku).replace(",", "")
    price = f"{rng.integers(15, 120)}.{rng.choice(['00', '50', '90'])}"
    brand = str(rng.choice(["Acme", "Bell", "Crow"]))
    return [sku, title, price, f"https://shop.example/{sku}", brand, "|".join(names)]


def _title(garment: Combination, seller: Seller, settings: MarketplaceSettings, sku: str) -> str:
    rng = seeded(settings.seed, "title", sku)
    return write_title(garment, seller, settings.title_share, settings.title_synonyms, rng).text


def _write(path: Path, names: list[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} exists; choose another folder")
    draw(given.folder, given.seed)
    print(given.folder / "products.csv")
