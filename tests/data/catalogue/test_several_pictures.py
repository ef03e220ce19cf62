"""Several pictures a listing: in every reader, in stores, and in rows."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.tfds_examples import divided, joined, open_prepared
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError
from afmrl_jax.testing import draw_badge

COUNTS = (1, 3, 2, 4, 1, 2, 3, 1)
"""Pictures of each listing."""


def names(number):
    return [f"images/{number}-{n}.png" for n in range(COUNTS[number])]


def record(number, **pictures):
    return {
        "listing_id": f"l{number}",
        "product_id": f"p{number}",
        "title": f"badge {number}",
        "attributes": {"colour": "red"},
        **pictures,
    }


@pytest.fixture
def shop(tmp_path, rng):
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    for number, count in enumerate(COUNTS):
        for n in range(count):
            shape, letter = ("circle", "square", "triangle")[number % 3], ("a", "k")[n % 2]
            (folder / names(number)[n]).write_bytes(draw_badge(shape, "red", letter, rng))
    return folder


def wanted(shop):
    return [[(shop / x).read_bytes() for x in names(n)] for n in range(len(COUNTS))]


def found(catalogue):
    return [[x.read_image_bytes(n) for n in range(len(x.pictures))] for x in catalogue.listings]


def write_lines(shop, pictures):
    rows = [json.dumps(record(n, **pictures(names(n)))) for n in range(len(COUNTS))]
    (shop / "listings.jsonl").write_text("\n".join(rows))
    return shop


def write_csv(shop, pictures):
    rows = [record(n, **pictures(names(n))) for n in range(len(COUNTS))]
    rows = [x | {"attributes": json.dumps(x["attributes"])} for x in rows]
    with (shop / "listings.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, list(dict.fromkeys(k for x in rows for k in x)))
        out.writeheader()
        out.writerows(rows)
    return shop


def one_a_column(paths):
    return {("image", "image_2", "image_3", "image_4")[n]: x for n, x in enumerate(paths)}


FORMS = {
    "list": (write_lines, lambda x: {"images": x}),
    "first and list": (write_lines, lambda x: {"image": x[0], "images": x}),
    "first and others": (write_lines, lambda x: {"image": x[0], "images": x[1:]}),
    "bars": (write_csv, lambda x: {"images": "|".join(x)}),
    "commas": (write_csv, lambda x: {"images": ", ".join(x)}),
    "json": (write_csv, lambda x: {"images": json.dumps(x)}),
    "columns": (write_csv, one_a_column),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_all_pictures_in_order(shop, form):
    write, pictures = FORMS[form]
    catalogue = load_catalogue(write(shop, pictures))
    assert found(catalogue) == wanted(shop)
    assert not any(x.extra for x in catalogue.listings)


@pytest.mark.parametrize("kind", ["bytes", "struct", "paths"])
def test_lists_of_a_parquet_file(shop, kind):
    def cell(path):
        data = (shop / path).read_bytes()
        return {"bytes": data, "struct": {"bytes": data, "path": None}, "paths": path}[kind]

    rows = [record(n, images=[cell(x) for x in names(n)]) for n in range(len(COUNTS))]
    pq.write_table(pa.Table.from_pylist(rows), shop / "listings.parquet")
    assert found(load_catalogue(shop)) == wanted(shop)


def test_a_data_set_of_the_hub_under_another_name(shop):
    rows = [
        record(n, photos=[{"bytes": (shop / x).read_bytes(), "path": x} for x in names(n)])
        for n in range(len(COUNTS))
    ]
    (shop / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), shop / "data" / "train-00000-of-00001.parquet")
    assert found(load_catalogue(shop, columns="images=photos")) == wanted(shop)


def test_a_folder_of_pictures_a_listing(shop):
    for number in range(len(COUNTS)):
        (shop / f"item-{number}").mkdir()
        for n, name in enumerate(names(number)):
            (shop / f"item-{number}" / f"{n}.png").write_bytes((shop / name).read_bytes())
        (shop / f"item-{number}" / "notes.txt").write_text("no picture")
    rows = [json.dumps(record(n, images=f"item-{n}")) for n in range(len(COUNTS))]
    (shop / "listings.jsonl").write_text("\n".join(rows))
    assert found(load_catalogue(shop)) == wanted(shop)


@pytest.mark.parametrize(
    ("pictures", "what"),
    [
        (lambda x: {"images": [*x, "images/none.png"]}, "does not exist|missing|not found"),
        (lambda x: {"images": [*x, "../secret.png"]}, "outside the catalogue folder"),
        (lambda x: {"images": [*x, 3.5]}, "'image' is a float"),
        (lambda x: {"images": 7}, "'images' is a int; write a list"),
        (lambda x: {"images": "[1"}, "'images' is text, but"),
        (lambda x: {"images": []}, "'image' is missing"),
        (lambda x: {"images": [f"images/{n}.png" for n in range(40)]}, "40 pictures; give 32"),
    ],
)
def test_what_is_wrong_with_one_of_them_is_said(shop, pictures, what):
    (shop.parent / "secret.png").write_bytes((shop / "images" / "0-0.png").read_bytes())
    with pytest.raises(CatalogueError, match=what):
        load_catalogue(write_lines(shop, pictures))


def test_a_broken_one_is_named_by_its_place(shop):
    (shop / "images" / "1-2.png").write_bytes(b"no picture")
    write_lines(shop, lambda x: {"images": x})
    with pytest.raises(CatalogueError, match=r"l1.*picture 3: the picture cannot be read"):
        load_catalogue(shop)
    problems = []
    check_catalogue(shop, problems.append)
    assert [x.what.startswith("picture 3") for x in problems if x.severity == "error"] == [True]


def test_a_store_keeps_them_and_says_how_many_have_several(shop, tmp_path):
    write_lines(shop, lambda x: {"images": x})
    manifest = convert(open_rows(shop), tmp_path / "store", Conversion())
    assert manifest["coverage"]["several pictures"] == 0.625
    store = load_catalogue(tmp_path / "store")
    assert found(store) == wanted(shop)
    assert found(store.subset("train")) == [
        x for x, s in zip(wanted(shop), store.column("split"), strict=True) if s == "train"
    ]
    convert(open_rows(tmp_path / "store"), tmp_path / "again", Conversion())
    assert found(load_catalogue(tmp_path / "again")) == wanted(shop)
    data = open_prepared(tmp_path / "store").as_data_source(split="listings")
    assert [1 + len(divided(bytes(x["more_images"] or b""))) for x in data] == list(COUNTS)


def test_records_of_one_picture_are_stored_as_before(shop, tmp_path):
    """Stores without further pictures keep the bytes, and so the fingerprint, of version 2."""
    write_lines(shop, lambda x: {"image": x[0]})
    convert(open_rows(shop), tmp_path / "store", Conversion())
    (columns,) = (tmp_path / "store").glob("columns-*")
    assert "pictures" not in pa.ipc.open_file(str(columns)).schema.names
    (shard,) = (tmp_path / "store").glob("*.array_record-*")
    assert b"more_images" not in shard.read_bytes()


def test_further_pictures_are_another_catalogue(shop):
    alone = load_catalogue(write_lines(shop, lambda x: {"image": x[0]})).fingerprint
    several = load_catalogue(write_lines(shop, lambda x: {"images": x})).fingerprint
    assert alone != several


def test_the_blob_of_pictures_goes_there_and_back(rng):
    pictures = [rng.bytes(n) for n in (1, 300, 70_000)]
    assert divided(joined(pictures)) == pictures
    assert divided(b"") == []
    for broken in (joined(pictures)[:-1], b"\0\0\0\0", b"\1\0"):
        with pytest.raises(CatalogueError, match="damaged"):
            divided(broken)


@pytest.mark.parametrize("most", [1, 2, 8])
def test_rows_have_as_many_as_the_settings_let_them(shop, tokenizer, most):
    listings = load_catalogue(write_lines(shop, lambda x: {"images": x})).listings
    image = ImageConfig(max_pictures=most)
    text = TextBudget(buckets=(128, 512))
    builder = RowBuilder.of(listings, tokenizer, image, text)
    one = RowBuilder.of(listings, tokenizer, ImageConfig(), text)
    rows = [builder.embedder(n, None) for n in range(len(COUNTS))]
    assert [len(x.pictures) for x in rows] == [min(n, most) for n in COUNTS]
    prompts = [builder.prompt(n) for n in range(len(COUNTS))]
    assert [len(x.pictures) for x in prompts] == [min(n, most) for n in COUNTS]
    for number, row in enumerate(rows):
        plain = one.embedder(number, None)
        np.testing.assert_array_equal(row.pictures[0].pixels, plain.pictures[0].pixels)
        if len(row.pictures) == 1:
            assert row.tokens == plain.tokens
    batch = builder.batch(rows)
    pads = (batch.tokens == tokenizer.image_pad_id).sum()
    patches = (batch.patch_segment > 0).sum()
    assert (
        pads * image.merge_size**2
        == patches
        == sum(len(p.pixels) for x in rows for p in x.pictures)
    )


def test_bad_ones_are_left_out_and_counted(shop, tokenizer):
    listings = load_catalogue(write_lines(shop, lambda x: {"images": x})).listings
    (shop / "images" / "3-1.png").write_bytes(b"broken since")
    image = ImageConfig(max_pictures=4, bad_pictures="skip")
    builder = RowBuilder.of(listings, tokenizer, image, TextBudget(buckets=(512,)))
    rows = [builder.embedder(n, None) for n in range(len(COUNTS))]
    assert [len(x.pictures) for x in rows] == [1, 3, 2, 3, 1, 2, 3, 1]
    assert builder.bad_pictures([3, 3, 0]) == 2
