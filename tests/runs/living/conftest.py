"""An embedded shop with prices, and listings to come."""

import json
import shutil

import numpy as np
import pytest

from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.runs.embedded import INDEX, About
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.thumbnails import LinesFile

DIM, COUNT = 8, 40


def unit(rng, count=COUNT):
    found = rng.normal(size=(count, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def entry(name, vector, price=None, **extra):
    """A listing as an index keeps it, whose thumbnail is its name."""
    line = {"listing_id": name, "product_id": f"p-{name}", "title": f"title of {name}"}
    line["extra"] = {"price": price, **extra} if price is not None else dict(extra)
    return Entry(line | {"content": "c" * 32}, vector, name.encode())


def write_folder(folder, rng, settings=None, count=COUNT):
    """An embedded catalogue without a run: entries `old-0` to `old-39`, priced 0 to 39."""
    vectors = unit(rng, count)
    entries = [entry(f"old-{n}", vectors[n], n, brand="Acme") for n in range(count)]
    folder.mkdir()
    with LinesFile(folder, thumbnails=True) as file:
        for x in entries:
            file.write(x.line, x.thumbnail)
    settings = settings or IndexSettings()
    ids = [x.listing_id for x in entries]
    Index.build(vectors, ids, settings=settings, embedder="e").save(folder / INDEX)
    About("infonce", "shop", "e", settings=settings, thumbnails=64).write(folder)
    return entries


@pytest.fixture(scope="module", params=["exact", "bfloat16", "scann"])
def written(request, tmp_path_factory):
    settings = {
        "exact": IndexSettings(),
        "bfloat16": IndexSettings(dtype="bfloat16"),
        "scann": IndexSettings(kind="scann"),
    }[request.param]
    folder = tmp_path_factory.mktemp("living") / "index"
    return folder, write_folder(folder, np.random.default_rng(1), settings)


@pytest.fixture
def shop(written, tmp_path):
    """A folder of its own, and the entries in it by id."""
    folder, entries = written
    return shutil.copytree(folder, tmp_path / "index"), {x.listing_id: x for x in entries}


def lines(folder):
    return [json.loads(x) for x in (folder / "listings.jsonl").read_text().splitlines()]
