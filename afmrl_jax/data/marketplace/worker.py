"""A process that draws some of the listings: `python -m afmrl_jax.data.marketplace.worker`.

Started by `build.py` as a program of its own: processes that `multiprocessing` starts import the
caller's main module again, which a script without a guard does not survive.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.data.marketplace.listings import COLUMNS, Row, row_of
from afmrl_jax.data.marketplace.plan import Offer, plan
from afmrl_jax.data.marketplace.sellers import Seller
from afmrl_jax.runtime.json_files import checked

EVERY = 25
"""Listings between two reports."""
SCHEMA = pa.schema([(x, pa.binary() if x == "image" else pa.string()) for x in COLUMNS])


def draw_rows(
    offers: Sequence[Offer],
    sellers: Mapping[str, Seller],
    settings: MarketplaceSettings,
    drawn: Callable[[int], None],
) -> pa.Table:
    """The listings of some offers.

    Args:
        offers: in order.
        sellers: by listing id, of all offers.
        settings: of the marketplace.
        drawn: called with how many more are done.
    """
    rows: list[Row] = []
    for number, offer in enumerate(offers, 1):
        rows.append(row_of(offer, sellers, settings))
        if number % EVERY == 0 or number == len(offers):
            drawn(number - (number - 1) // EVERY * EVERY)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def sellers_of(offers: Sequence[Offer]) -> dict[str, Seller]:
    """Who sells each listing."""
    return {offer.listing_id: offer.seller for offer in offers}


def main(arguments: Sequence[str]) -> None:
    """Draw a range of listings into an Arrow file, reporting counts on standard output.

    Args:
        arguments: the settings as JSON, the first listing, the one behind the last, the file.
    """
    content, begin, end, out = arguments
    settings = checked(MarketplaceSettings, json.loads(content), "the settings")
    offers = plan(settings)

    def drawn(count: int) -> None:
        # One call, so that the lines of several processes do not mix.
        os.write(sys.stdout.fileno(), f"{count}\n".encode())

    table = draw_rows(offers[int(begin) : int(end)], sellers_of(offers), settings, drawn)
    with pa.ipc.new_file(str(Path(out)), SCHEMA) as file:
        file.write_table(table)


if __name__ == "__main__":
    main(sys.argv[1:])
