"""Build the embedded furniture catalogue from Debian's `sweethome3d-furniture` package.

    apt-get download sweethome3d-furniture && dpkg-deb -x sweethome3d-furniture_*.deb furniture-deb
    pip install moderngl && pip install -e .
    python -m experiments.furniture.build_furniture --source furniture-deb

Writes `listings.parquet` and `ATTRIBUTION.md` to `afmrl_jax/data/furniture/`. Needed only to change
the catalogue: its output is part of the package. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image
from tqdm import tqdm

from afmrl_jax.runtime.files import atomic_path, write_text
from afmrl_jax.types import JsonObject
from experiments.furniture import words
from experiments.furniture.render import Renderer, jpeg
from experiments.furniture.source import Item, Mesh, read_items, read_mesh

HERE = Path(__file__).resolve().parent
LICENCES = {
    "BlendSwap-CC-0": ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "BlendSwap-CC-BY": ("CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
    "KatorLegaz": ("CC BY 3.0 US", "https://creativecommons.org/licenses/by/3.0/us/"),
    "Scopia": ("CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
}


@dataclass(frozen=True)
class Build:
    """Settings of the catalogue."""

    source: Path
    """Folder with the unpacked Debian package."""
    out: Path = HERE.parents[1] / "afmrl_jax" / "data" / "furniture"
    """Where to write."""
    seed: int = 0
    colourings: int = 4
    """Products (colorings) per object, including the original."""
    pixels: int = 96
    """Side of a picture."""
    quality: int = 80
    """JPEG quality."""
    duplicate_share: float = 0.05
    """Share of `train` products that are also listed under a second product id."""
    splits: tuple[float, float, float, float] = (0.45, 0.25, 0.10, 0.20)
    """Shares of the families in distill, train, reward and test."""
    limit: int = 0
    """Only this many objects, for a trial; 0 means all."""
    processes: int = 2


def seeded(*path: object) -> np.random.Generator:
    """A separate random generator for every object, product and listing."""
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


class Look(NamedTuple):
    """One coloring of an object."""

    colours: np.ndarray
    """[m 3], RGB of each material, 0 to 1."""
    colour: str
    accent: str | None


def choose_colourings(mesh: Mesh, build: Build, rng: np.random.Generator) -> list[Look]:
    """The original coloring and recolored ones."""
    areas = mesh.areas()
    order = np.argsort(-areas)
    main = [int(order[0])]
    for material in order[1:]:
        # Materials close to the main color change with it, and a second one if it is a minority.
        near = np.abs(mesh.colours[material] - mesh.colours[main[0]]).max() < 0.15
        if near or (areas[main].sum() < 0.45 and len(main) < 2):
            main.append(int(material))
    rest = [int(m) for m in order if m not in main and areas[m] > 0.12]
    accent = words.colour_name(mesh.colours[rest[0]]) if rest else None
    original = words.colour_name(mesh.colours[main[0]])
    out = [Look(mesh.colours, original, accent)]
    others = [n for n in rng.permutation(words.NAMES) if n not in (original, accent)]
    for name in others[: build.colourings - 1]:
        target = words.PALETTE[words.NAMES.index(str(name))]
        colours = mesh.colours.copy()
        tint = np.clip(target + rng.normal(0, 0.02, 3), 0, 1)
        brightness = mesh.colours[main].mean(1) - mesh.colours[main[0]].mean()
        colours[main] = np.clip(tint + 0.4 * brightness[:, None], 0, 1)
        out.append(Look(colours, str(name), accent))
    return out


def object_listings(
    archive: ZipFile, item: Item, split: str, build: Build, renderer: Renderer
) -> list[JsonObject]:
    """All listings of one object."""
    mesh = read_mesh(archive, item.model)
    rng = seeded(build.seed, item.family_id)
    rows = []
    for number, look in enumerate(choose_colourings(mesh, build, rng)):
        product = f"{item.family_id}-{number}"
        chance = seeded(build.seed, product, "product")
        sellers = [words.SELLERS[i] for i in chance.permutation(len(words.SELLERS))]
        count = int(chance.integers(3, 5))
        chosen = sellers[:count]
        if number == 0:
            chosen = [words.CATALOGUE_SELLER, *chosen[: count - 1]]
        duplicate = split == "train" and chance.random() < build.duplicate_share
        extra = sellers[count : count + 2] if duplicate else []
        for place, seller in enumerate([*chosen, *extra]):
            second = place >= len(chosen)
            rows.append(
                listing(archive, item, mesh, look, product, seller, second, build, renderer)
                | {"split": split}
            )
    return rows


def listing(
    archive: ZipFile,
    item: Item,
    mesh: Mesh,
    look: Look,
    product: str,
    seller: words.Seller,
    second: bool,
    build: Build,
    renderer: Renderer,
) -> JsonObject:
    """One offer: picture, title, and the true attributes of the product."""
    rng = seeded(build.seed, product, seller.name)
    if seller is words.CATALOGUE_SELLER:
        icon = Image.open(archive.open(item.icon)).convert("RGBA")
        page = Image.new("RGBA", icon.size, "white")
        picture = Image.alpha_composite(page, icon).convert("RGB")
        picture = picture.resize((build.pixels, build.pixels), Image.Resampling.LANCZOS)
    else:
        picture = renderer.picture(mesh, look.colours, seller.studio, rng, build.pixels)
    shop = seller.name.lower().replace(" ", "-")
    return {
        "listing_id": f"{product}-{shop}",
        "product_id": f"{product}-b" if second else product,
        "family_id": item.family_id,
        "seller": seller.name,
        "category": item.category,
        "title": words.write_title(item, look.colour, seller, rng),
        "language": seller.language if seller.language in item.names else "en",
        "attributes": json.dumps(
            words.true_attributes(item, look.colour, look.accent), ensure_ascii=False
        ),
        "duplicate_of": product if second else None,
        "image": jpeg(picture, build.quality),
    }


def build_part(build: Build, part: int) -> list[JsonObject]:
    """The listings of every `processes`-th object."""
    renderer = Renderer()
    rows: list[JsonObject] = []
    split_of = assign_splits(build)
    items = list(read_items(build.source))[: build.limit or None]
    mine = items[part :: build.processes]
    for archive, item in tqdm(mine, desc=f"part {part}", mininterval=10):
        rows += object_listings(archive, item, split_of[item.family_id], build, renderer)
    return rows


def assign_splits(build: Build) -> dict[str, str]:
    """Split of each family, drawn once over all families."""
    families = sorted(item.family_id for _, item in read_items(build.source))
    order = seeded(build.seed, "splits").permutation(len(families))
    edges = np.round(np.cumsum(build.splits) * len(families)).astype(int)
    names = ("distill", "train", "reward", "test")
    return {
        families[place]: names[int(np.searchsorted(edges, rank, "right"))]
        for rank, place in enumerate(order)
    }


def attribution(items: list[Item], used: set[str]) -> str:
    """ATTRIBUTION.md: every creator and license."""
    by_library: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.family_id in used:
            by_library[item.library][item.creator or "unknown"].append(
                f"{item.name} ({item.number})"
            )
    lines = [
        "# Attribution of the furniture catalogue",
        "",
        "The pictures in `listings.parquet` derive from 3-D models and pictures of the Debian",
        "package `sweethome3d-furniture` 1.8-1 (Sweet Home 3D furniture libraries, compiled by",
        "Emmanuel Puybaret / eTeks, <http://www.sweethome3d.com>). Changes: the models were",
        "rendered from new viewpoints under other light and backgrounds, recoloured, and scaled",
        "down; the shipped pictures were scaled down; titles were rewritten from the names and",
        "their translations. They are renderings, not photographs. Numbers in brackets are those",
        "of the objects in their library.",
        "",
    ]
    for library, creators in sorted(by_library.items()):
        licence, link = LICENCES[library]
        lines += [f"## {library}: [{licence}]({link})", ""]
        for creator, objects in sorted(creators.items(), key=lambda pair: pair[0].lower()):
            lines += [f"* **{creator}**: {', '.join(objects)}"]
        lines.append("")
    return "\n".join(lines)


def main(build: Build) -> None:
    """Render, write, and print a summary."""
    with ProcessPoolExecutor(build.processes) as pool:
        parts = list(pool.map(partial(build_part, build), range(build.processes)))
    rows = sorted((row for part in parts for row in part), key=lambda r: r["listing_id"])
    with atomic_path(build.out / "listings.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
    items = [item for _, item in read_items(build.source)]
    write_text(build.out / "ATTRIBUTION.md", attribution(items, {r["family_id"] for r in rows}))
    print(f"{len(rows)} listings, {len({r['product_id'] for r in rows})} product ids")
    print(dict(Counter(row["split"] for row in rows)))
    print(
        {
            s: len({r["family_id"] for r in rows if r["split"] == s})
            for s in {r["split"] for r in rows}
        }
    )
    print(f"{(build.out / 'listings.parquet').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(tyro.cli(Build, description=__doc__))
