"""A catalogue of one's own: python examples/own_catalogue.py [FOLDER].

A catalogue is a folder with `listings.jsonl` and pictures. This writes one of four listings into
FOLDER (default: a temporary one), reads it back, and shows what training would see.
"""

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from afmrl_jax import Catalogue, load_catalogue

LISTINGS = (
    ("m1-a", "mug-1", "Blue enamel mug, 350 ml", "navy"),
    ("m1-b", "mug-1", "Camping mug, enamelled, blue", "navy"),
    ("m2-a", "mug-2", "Red enamel mug, 350 ml", "crimson"),
    ("m2-b", "mug-2", "Camping mug in red", "crimson"),
)


def write(folder: Path) -> None:
    """Two products with two listings each: one JSON object a line."""
    lines = []
    for listing_id, product_id, title, color in LISTINGS:
        Image.new("RGB", (64, 64), color).save(folder / f"{listing_id}.png")
        record = {"listing_id": listing_id, "product_id": product_id, "title": title}
        record |= {"image": f"{listing_id}.png", "split": "train"}
        lines.append(json.dumps(record))
    (folder / "listings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(folder: Path) -> Catalogue:
    """Write the catalogue, load it and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    catalogue = load_catalogue(str(folder))
    for listing in catalogue.listings:
        print(listing.listing_id, listing.product_id, listing.split, listing.title)
    return catalogue


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
