"""Several pictures a listing, to the vectors: one picture changes no bit, and each one counts."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import InputError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.inputs import read_inputs
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runs.embedded import contents_of
from afmrl_jax.testing import draw_badge, write_badge_catalogue


@pytest.fixture(scope="module")
def run(written_run, tmp_path_factory):
    """The written run, with room for three pictures in a row."""
    folder = shutil.copytree(written_run, tmp_path_factory.mktemp("several") / "run")
    config = json.loads((folder / "config.json").read_text())
    config["image"]["max_pictures"] = 3
    config["text"]["buckets"] = [64, 128]
    (folder / "config.json").write_text(json.dumps(config))
    return FinishedRun(folder)


@pytest.fixture
def shop(tmp_path):
    """The first ten listings have a second picture."""
    folder = write_badge_catalogue(tmp_path / "shop", listings_per_product=1)
    rows = [json.loads(x) for x in (folder / "listings.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows[:10]):
        name = f"images/back-{number}.png"
        rng = np.random.default_rng(number)
        (folder / name).write_bytes(draw_badge("square", "amber", "k", rng))
        row["images"] = [row["image"], name]
    (folder / "listings.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def vectors(run, shop, out):
    embed_catalogue(run, "infonce", load_catalogue(shop), out)
    return np.load(out / "index" / "vectors.npy")


def without_others(catalogue):
    alone = tuple(dataclasses.replace(x, more_images=()) for x in catalogue.listings)
    return dataclasses.replace(catalogue, listings=alone)


def test_a_run_of_one_picture_reads_the_first_bit_for_bit(written_run, shop, tmp_path):
    run, catalogue = FinishedRun(written_run), load_catalogue(shop)
    several = vectors(run, shop, tmp_path / "several")
    embed_catalogue(run, "infonce", without_others(catalogue), tmp_path / "alone")
    alone = np.load(tmp_path / "alone" / "index" / "vectors.npy")
    np.testing.assert_array_equal(several, alone)


def test_a_further_picture_counts_where_there_is_one(run, shop, tmp_path):
    several = vectors(run, shop, tmp_path / "several")
    embed_catalogue(run, "infonce", without_others(load_catalogue(shop)), tmp_path / "alone")
    alone = np.load(tmp_path / "alone" / "index" / "vectors.npy")
    moved = np.abs(several - alone).max(axis=1)
    assert (moved[:10] > 1e-4).all()
    assert (moved[10:] < 1e-5).all()


def test_an_update_notices_another_second_picture(run, shop, tmp_path):
    out = tmp_path / "index"
    before = vectors(run, shop, out)
    (shop / "images" / "back-3.png").write_bytes(
        draw_badge("circle", "green", "a", np.random.default_rng(7))
    )
    catalogue = load_catalogue(shop)
    embed_catalogue(run, "infonce", catalogue, out, update=True)
    after = np.load(out / "index" / "vectors.npy")
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [3]
    names = [json.loads(x)["content"] for x in (out / "listings.jsonl").read_text().splitlines()]
    assert names == contents_of(catalogue.listings, 3)
    assert names[:10] != contents_of(catalogue.listings[:10])
    assert names[10:] == contents_of(catalogue.listings[10:])


def test_items_may_have_several_too(run, shop):
    listing = load_catalogue(shop).listings[0]
    embedder = Embedder.of(run, run.system("infonce"))
    one, two = embedder.encode(
        [
            {"text": listing.title, "image": listing.image},
            {"text": listing.title, "image": [*listing.pictures]},
        ]
    )
    assert np.abs(one - two).max() > 1e-4
    with pytest.raises(InputError, match="the list of pictures is empty"):
        read_inputs([{"text": "a", "image": []}])
