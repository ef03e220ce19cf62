"""Readers of published datasets, each on a small folder in its authors' layout."""

import gzip
import json
from collections import Counter

import pytest

from afmrl_jax.data.catalogue.load import to_listing
from afmrl_jax.data.catalogue.published import LAYOUTS, layout_of, m5product
from afmrl_jax.data.catalogue.published.reading import training_split
from afmrl_jax.data.catalogue.splits import SPLIT_SHARES
from afmrl_jax.errors import CatalogueError
from tests.data.catalogue.published_rows import Fatal, fatal, known, read, row

RAW = ["m5product", "abo", "product1m", "online-products", "mbe"]


def test_training_split_has_the_shares():
    counts = Counter(training_split(f"product {n}") for n in range(20_000))
    for split, share in zip(("distill", "train", "reward"), SPLIT_SHARES, strict=False):
        assert counts[split] / 20_000 == pytest.approx(share / sum(SPLIT_SHARES[:3]), abs=0.01)
    assert training_split("family x") == training_split("family x")


@pytest.mark.parametrize("name", RAW)
def test_layouts_are_told_apart(name, raw_folder):
    folder = raw_folder(name)
    assert [x.name for x in LAYOUTS.values() if x.found(folder)] == [name]


def test_other_folders_have_no_layout(badges, tmp_path):
    assert layout_of(badges) is None
    assert layout_of(tmp_path) is None
    assert layout_of(tmp_path / "gone") is None


@pytest.mark.parametrize("name", RAW)
def test_rows_become_listings_with_pictures(name, raw_folder):
    folder = raw_folder(name)
    found = [x for _, x in read(folder, report=lambda p: p.severity == "warning" or fatal(p))]
    listings = [to_listing(x, folder) for x in found]
    assert len({x.listing_id for x in listings}) == len(listings)
    assert all(x.read_image_bytes().startswith(b"\xff\xd8") for x in listings)
    splits = {x.split for x in listings}
    assert splits == {None} or None not in splits


@pytest.mark.parametrize("name", RAW)
def test_inputs_can_be_read_one_by_one(name, raw_folder):
    folder = raw_folder(name)
    layout = LAYOUTS[name]
    whole = list(layout.rows(folder, lambda _: None))
    parts = [layout.rows(folder, lambda _: None, files=[x]) for x in layout.inputs(folder)]
    assert [x for part in parts for x in part] == whole


# Amazon Berkeley Objects


def test_abo(raw_folder):
    folder = raw_folder("abo")
    oak = {
        "brand": "Rivet", "color": "Walnut brown", "material": "Oak, Steel",
        "product type": "chair",
    }  # fmt: skip
    common = {"category": "CHAIR", "attributes": oak}
    name, title = "B001@amazon.com", "Oak chair"
    small = "images/small"
    assert [(where, known(x)) for where, x in read(folder)] == [
        ("listings_0.json.gz, line 1",
         row(name, "B001", title, f"{small}/14/14fe8812.jpg", **common)),
        ("listings_0.json.gz, line 1",
         row(f"{name}-81oak-sideL", "B001", title, f"{small}/da/daab0cad.jpg", **common)),
        ("listings_0.json.gz, line 1",
         row(f"{name}-91oak-backL", "B001", title, f"{small}/d2/d2daaae9.png", **common)),
        ("listings_0.json.gz, line 2",
         row("B001@amazon.de", "B001", "Eichenstuhl", f"{small}/14/14fe8812.jpg",
             category="CHAIR", attributes={"color": "Walnuss", "product type": "chair"})),
        ("listings_f.json.gz, line 1",
         row("B002@amazon.in", "B002", "Phone case", f"{small}/3a/3a4e88e6.jpg",
             category="CELLULAR_PHONE_CASE",
             attributes={"product type": "cellular phone case"})),
    ]  # fmt: skip


def test_abo_options(raw_folder):
    folder = raw_folder("abo")
    found = [x for _, x in read(folder, language="de", other_images=1, size="original")]
    assert [x["title"] for x in found] == ["Eichenstuhl"] * 3 + ["Phone case"]
    assert found[0]["attributes"] == {
        "brand": "Rivet", "color": "Walnussbraun", "product type": "chair",
    }  # fmt: skip
    assert found[1]["image"] == "images/original/da/daab0cad.jpg"
    assert len(read(folder, other_images=0)) == 3
    with pytest.raises(CatalogueError, match="size 'big' of pictures is unknown"):
        read(folder, size="big")


def test_abo_broken_records(raw_folder):
    folder = raw_folder("abo")
    path = folder / "listings/metadata/listings_0.json.gz"
    first, second = gzip.decompress(path.read_bytes()).splitlines()
    record = json.loads(second)
    lines = [
        b'{"item_id": ',
        b"[1]",
        b"\xff\xfe",
        json.dumps({**record, "item_id": ""}).encode(),
        json.dumps({**record, "item_name": []}).encode(),
        json.dumps({**record, "main_image_id": "gone"}).encode(),
        second,
    ]
    path.write_bytes(gzip.compress(b"\n".join([first, *lines])))
    other = folder / "listings/metadata/listings_f.json.gz"
    other.write_bytes(other.read_bytes()[:-12])
    table = folder / "images/metadata/images.csv.gz"
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()) + b"11lost,1,2\n"))
    problems = []
    found = read(folder, problems.append)
    assert [x["listing_id"] for _, x in found][3:] == ["B001@amazon.de"]
    for problem, want in zip(
        map(str, problems),
        [
            f"{table}: line 6: '11lost,1,2' is not image_id,height,width,path; fix or remove",
            f"{path}: line 2: not valid JSON (Expecting value at column 13); fix or remove",
            f"{path}: line 3: not a JSON object; write one object per line",
            f"{path}: line 4: not UTF-8 (byte 0); fix or remove the line",
            f"{path}: line 5: the column 'item_id' is missing or empty; fix or remove the line",
            f"{path}: line 6: no item_name in any language; fix or remove the line",
            f"{path}: line 7: picture 'gone' is not in images/metadata/images.csv.gz; fix",
            f"{other}: line 1: the compressed file is damaged (Compressed file ended",
        ],
        strict=True,
    ):
        assert problem.startswith(want), (problem, want)


def test_abo_without_a_table_of_pictures(raw_folder):
    folder = raw_folder("abo")
    table = folder / "images/metadata/images.csv.gz"
    table.write_bytes(gzip.compress(b"id,path\n"))
    with pytest.raises(CatalogueError, match="has the columns 'id,path'; it should have image_id"):
        read(folder)
    table.unlink()
    with pytest.raises(CatalogueError, match=r"images.csv.gz does not exist; download abo-list"):
        read(folder)


def test_abo_lines_that_csv_does_not_know(raw_folder):  # F3
    folder = raw_folder("abo")
    table = folder / "images/metadata/images.csv.gz"
    lines = gzip.decompress(table.read_bytes())
    table.write_bytes(gzip.compress(lines + b"a,1,2\r,b\n" + b"x" * 200_000 + b",1,2,b\n"))
    problems = []
    assert len(read(folder, problems.append)) == 5
    assert [x.record for x in problems] == ["line 6", "line 7"]
    assert max(len(str(x)) for x in problems) < 500


# Product1M


def test_product1m(raw_folder):
    folder = raw_folder("product1m")
    test = {"split": "test"}
    assert [(where, known(x)) for where, x in read(folder)] == [
        ("product1m_train_ossurl_v2.txt, line 1",
         row("1", "1", "Day\xa0cream 50ml", "images/1.jpg", split=training_split("product 1"))),
        ("product1m_gallery_ossurl_v2.txt, line 1",
         row("2", "AHC toner", "AHC toner", "images/2.jpg", role="gallery", **test)),
        ("product1m_gallery_ossurl_v2.txt, line 2",
         row("3", "AHC cream", "AHC gold cream", "images/3.jpg", role="gallery", **test)),
        ("product1m_test_ossurl_v2.txt, line 1",
         row("4-1", "AHC cream", "AHC set", "images/4.jpg", role="query", **test)),
        ("product1m_test_ossurl_v2.txt, line 1",
         row("4-2", "AHC toner", "AHC set", "images/4.jpg", role="query", **test)),
        ("product1m_test_ossurl_v2.txt, line 2",
         row("5", "AHC toner", "AHC toner new", "images/5.jpg", role="query", **test)),
    ]  # fmt: skip
    found = read(folder, queries=("dev",))
    assert [x["listing_id"] for _, x in found if x.get("role") == "query"] == ["6"]
    with pytest.raises(CatalogueError, match=r"queries \['gallery'\] are unknown"):
        read(folder, queries=("gallery",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7#####Toner#####u#####u", "4 fields between #####, where 5 are needed; fix or remove"),
        ("7##### #####u#####u#####x", "the column 'title' is missing or empty; fix or remove"),
        ("#####Toner#####u#####u#####x", "the column 'id' is missing or empty; fix or remove"),
        ("7#####&#" + "9" * 5000 + ";#####u#####u#####x", "the title has an HTML entity with a"),
        ("7#####Toner#####u#####u#####", "the column 'label' is missing or empty; fix or"),
    ],
)
def test_product1m_broken_records(raw_folder, line, said):
    folder = raw_folder("product1m")
    path = folder / "product1m_gallery_ossurl_v2.txt"
    path.write_text(line + "\n" + path.read_text())
    problems = []
    assert len(read(folder, problems.append)) == 6
    assert [str(x).startswith(f"{path}: line 1: {said}") for x in problems] == [True]


# Stanford Online Products


def test_online_products(raw_folder):
    split = {name: training_split(f"product {name}") for name in ("1", "2")}
    bicycle = {"category": "bicycle", "split": split["1"]}
    maker = {"category": "coffee maker", "split": split["2"]}
    lamp = {"category": "lamp", "split": "test"}
    assert read(raw_folder("online-products")) == [
        ("Ebay_train.txt, line 2", row("111085122871_0", "1", "bicycle",
                                       "bicycle_final/111085122871_0.JPG", **bicycle)),
        ("Ebay_train.txt, line 3", row("111085122871_1", "1", "bicycle",
                                       "bicycle_final/111085122871_1.JPG", **bicycle)),
        ("Ebay_train.txt, line 4", row("111265328556_0", "2", "coffee maker",
                                       "coffee_maker_final/111265328556_0.JPG", **maker)),
        ("Ebay_test.txt, line 2", row("251952414262_0", "11319", "lamp",
                                      "lamp_final/251952414262_0.JPG", **lamp)),
        ("Ebay_test.txt, line 3", row("251952414262_1", "11319", "lamp",
                                      "lamp_final/251952414262_1.JPG", **lamp)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("6 7 lamp_final/1_0.JPG", "3 fields, where 4 are needed (image_id class_id"),
        ("6 x 7 lamp_final/1_0.JPG", "class_id 'x' and super_class_id '7' must be numbers"),
        ("6 " + "9" * 5000 + " 7 lamp_final/1_0.JPG", "class_id '99999999999999999999' and super"),
        ("6 11320 13 lamp_final/1_0.JPG", "super_class_id 13 is not one of 1 to 12; fix or"),
    ],
)
def test_online_products_broken_records(raw_folder, line, said):
    folder = raw_folder("online-products")
    path = folder / "Ebay_test.txt"
    path.write_text(path.read_text() + line + "\n")
    problems = []
    assert len(read(folder, problems.append)) == 5
    assert [str(x).startswith(f"{path}: line 4: {said}") for x in problems] == [True]


def test_online_products_of_another_form(raw_folder):
    folder = raw_folder("online-products")
    (folder / "Ebay_test.txt").write_text("4 11319 7 lamp_final/251952414262_0.JPG\n")
    with pytest.raises(Fatal, match=r"Ebay_test.txt: line 1: the header is '4 11319 .* unchanged"):
        read(folder)


# MBE


def test_mbe(raw_folder):
    problems = []
    folder = raw_folder("mbe")
    kettle = row("00aa", "00aa", "不锈钢水壶", "images/00aa.jpg", category="水壶",
                 attributes={"材质": "不锈钢", "颜色": "银, 黑"},
                 split=training_split("product 00aa"))  # fmt: skip
    dress = row("00bb", "00bb", "连衣裙", "pictures/bb.jpg", category="服饰时尚", split="test")
    train, test = ("MBE_train.jsonl, line 1", kettle), ("MBE_test.jsonl, line 1", dress)
    assert [(where, known(x)) for where, x in read(folder, problems.append)] == [test, train]
    (warning,) = problems
    assert warning.severity == "warning"
    assert "the columns query_pic, query_words are not read; give those" in str(warning)
    found = read(folder, files=[folder / "MBE_test.jsonl"], query_title="query_words",
                 query_image="query_pic", category="doc_cate1_name")  # fmt: skip
    dress = {**dress, "role": "gallery"}
    del dress["category"]
    query = row("00bb-query", "00bb", "夏季裙", "images/00bb-query.jpg", split="test", role="query")
    assert [known(x) for _, x in found] == [dress, query]
    with pytest.raises(CatalogueError, match="column 'cate' is not a category of MBE; use one of"):
        read(folder, category="cate")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"doc_image": None}, "the column 'doc_image' is missing or empty; fix or remove the"),
        ({"id": "", "doc_title": ""}, "the column 'id', 'doc_title' is missing or empty; fix"),
    ],
)
def test_mbe_broken_records(raw_folder, change, said):
    folder = raw_folder("mbe")
    path = folder / "MBE_train.jsonl"
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = [json.dumps(record), json.dumps({**record, **change}), "{"]
    path.write_text("\n".join(lines), encoding="utf-8")
    problems = []
    assert len(read(folder, problems.append, files=[path])) == 1
    assert str(problems[0]).startswith(f"{path}: line 2: {said}")
    assert str(problems[1]).startswith(f"{path}: line 3: not valid JSON")


def test_remedies_name_the_files():
    assert all(x.download and x.citation and x.description for x in LAYOUTS.values())
    assert set(m5product.LISTS) == {"fine", "coarse", "classification"}
