"""The reader of M5Product, and the reader of its table: one large JSON object."""

import gzip
import json

import pytest

from afmrl_jax.data.catalogue.published import json_table
from afmrl_jax.data.catalogue.published.json_table import read_table
from afmrl_jax.data.catalogue.published.reading import training_split
from afmrl_jax.errors import CatalogueError
from tests.data.catalogue.published_rows import Fatal, fatal, known, read, row


def m5(name, title, category, **more):
    product = more.pop("product", name)
    return row(name, product, title, f"images/{name}.jpg", category=category, **more)


def test_m5product_fine(raw_folder):
    problems = []
    found = read(raw_folder("m5product"), problems.append)
    red = {"颜色": "红色", "材质": "棉"}
    test = {"split": "test"}
    assert [(where, known(x)) for where, x in found] == [
        ("id_label.json, record 1", m5("101", "红色 连衣裙", "连衣裙", product="dress-1",
                                       attributes=red, role="query", **test)),
        ("id_label.json, record 2", m5("102", "Red dress", "连衣裙", product="dress-1",
                                       role="gallery", **test)),
        ("id_label.json, record 3", m5("103", "Blue dress", "连衣裙", product="dress-2",
                                       attributes={"颜色": "蓝色"}, **test)),
        ("id_label.json, record 5", m5("105", "Kettle", "壶", attributes={"volume": "2 l"},
                                       split=training_split("product 105"))),
        ("id_label.json, record 6", m5("106", "Lamp", "灯",
                                       split=training_split("product 106"))),
    ]  # fmt: skip
    assert [(x.severity, x.what[:10]) for x in problems] == [("warning", "1 listing(")]


def test_m5product_coarse_and_classification(raw_folder):
    folder = raw_folder("m5product")
    found = {x["listing_id"]: known(x) for _, x in read(folder, lambda _: None, task="coarse")}
    assert {name: (x["split"], x.get("role")) for name, x in found.items()} == {
        "101": ("test", "gallery"),
        "102": ("test", "gallery"),
        "104": ("test", "query"),
        "105": (training_split("product 105"), None),
        "106": (training_split("product 106"), None),
    }
    assert found["102"]["product_id"] == "102"
    found = read(folder, lambda _: None, task="classification")
    assert {x["listing_id"]: x["split"] for _, x in found} == {
        "102": "test", "104": "test", "105": "train", "106": "train",
    }  # fmt: skip
    with pytest.raises(CatalogueError, match=r"task .finest. .* use one of fine, coarse"):
        read(folder, task="finest")


def test_m5product_lists_may_be_lines(raw_folder):
    folder = raw_folder("m5product")
    want = read(folder, lambda _: None)
    path = folder / "query_fg_image_ids.json"
    path.with_suffix(".txt").write_text("101\r\n103\r\n")
    path.unlink()
    assert read(folder, lambda _: None) == want


def change_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def test_m5product_broken_records(raw_folder):
    folder = raw_folder("m5product")
    table = folder / "id_label.json"

    def spoil(content):
        del content["102"]["title"]
        content["106"] = "Lamp"
        content["107"] = content["104"]
        content["105"]["label"] = " "

    change_json(table, spoil)
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace('"pv": "颜色#:#蓝色",', '"pv": "颜色#:#蓝色'), encoding="utf-8")
    change_json(folder / "product1m_product5m_id_label.json", lambda x: x["101"].update(label=""))
    change_json(folder / "query_fg_image_ids.json", lambda x: x.append("999"))
    problems = []
    found = read(folder, problems.append)
    assert [x["listing_id"] for _, x in found] == ["107"]
    said = [str(x) for x in problems]
    truth = folder / "product1m_product5m_id_label.json"
    for problem, want in zip(
        said,
        [
            f"{truth}: record 1 (id '101'): the column 'label' is missing or empty; add the label",
            f"{table}: record 1 (id '101'): the listing has no label in product1m_product5m",
            f"{table}: record 2 (id '102'): the column 'title' is missing or empty; fix or remove",
            f"{table}: record 3 (id '103'): not valid JSON",
            f"{table}: record 5 (id '105'): the column 'label' is missing or empty; fix or remove",
            f"{table}: record 6 (id '106'): not a JSON object; fix or remove the record",
            f"{folder / 'query_fg_image_ids.json'}: id '103': id_label.json has no record of it",
            f"{folder / 'query_fg_image_ids.json'}: id '999': id_label.json has no record of it",
            f"{folder / 'gallery_fg_image_ids.json'}: id '103': id_label.json has no record of it",
            f"{table}: table: 1 listing(s) that another task tests are left out; read them in",
        ],
        strict=True,
    ):
        assert problem.startswith(want), (problem, want)


def test_m5product_missing_or_broken_lists(raw_folder):
    folder = raw_folder("m5product")
    path = folder / "gallery_fg_image_ids.json"
    for content, said in (
        ("[1, ", "not valid JSON .*download it again"),
        ('{"1": 2}', "is not a list of ids; use"),
        ("9" * 5000, "not valid JSON .*download it again"),
        ("[" * 100_000, "nested deeper .*download it again"),
        (None, "does not exist; download data, annotation and id lists"),
    ):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(CatalogueError, match=f"gallery_fg_image_ids.json.*{said}"):
            read(folder)
    path.write_text('["102"]')
    (folder / "product1m_product5m_id_label.json").unlink()
    with pytest.raises(CatalogueError, match=r"product1m_product5m_id_label.json does not exist"):
        read(folder)


def test_m5product_many_unknown_ids_are_counted(raw_folder):
    folder = raw_folder("m5product")
    path = folder / "query_fg_image_ids.json"
    change_json(path, lambda ids: ids.extend(str(n) for n in range(500, 550)))
    problems = []
    read(folder, problems.append)
    assert [x.record for x in problems[:20]] == [f"id '{n}'" for n in range(500, 520)]
    assert (problems[20].record, problems[20].what) == (
        "list", "id_label.json has no record of 30 more ids",
    )  # fmt: skip


# The table of M5Product: a large JSON object


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_table_equals_json(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_table, "CHUNK", chunk)
    content = {
        f'id "{n}" \\ é': {"title": "{a}, \"b\": {", "n": n, "nested": {"x": [1, {"y": "}"}]}}
        for n in range(9)
    }  # fmt: skip
    path = tmp_path / "table.json.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf " + json.dumps(content, indent=indent).encode()))
    found = list(read_table(path, fatal))
    assert {key: value for _, key, value in found} == content
    assert [number for number, _, _ in found] == list(range(1, 10))
    path.write_bytes(gzip.compress(b"{ }"))
    assert list(read_table(path, fatal)) == []


@pytest.mark.parametrize("chunk", [16, 1 << 16])
def test_table_goes_on_behind_broken_records(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_table, "CHUNK", chunk)
    monkeypatch.setattr(json_table, "LONGEST", 64)
    path = tmp_path / "table.json"
    path.write_text('{"a": {"x": 1}, "b": {"x": tru}, "c": {"x": 3}, "d" {}, "e": {"x": 5}, "f": {')
    problems = []
    found = [key for _, key, _ in read_table(path, problems.append)]
    assert found == ["a", "c", "e"]
    assert [x.record for x in problems] == [
        "record 2 (id 'b')", "record 4 (id '\"d\" {}, \"e\": {\"x\": 5')", "record 6 (id 'f')",
    ]  # fmt: skip
    for content, said in (("[1]", "not a JSON object of records"), ("", "not a JSON object")):
        path.write_text(content)
        with pytest.raises(CatalogueError, match=said):
            list(read_table(path, fatal))


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "[" * 50_000, '"\\ud800"', '{"y": 1, "y": 2}', "NaN", '"\\x"'],
    ids=["digits", "deep", "surrogate", "twice", "nan", "escape"],
)
def test_table_goes_on_behind_records_that_python_stumbles_over(tmp_path, value):  # F3
    path = tmp_path / "table.json"
    path.write_text(
        f'{{"a": {{"x": 1}}, "b": {{"x": {value}}}, "\\q": {{"x": 2}}, "c": {{"x": 3}}}}'
    )
    problems = []
    found = [key for _, key, _ in read_table(path, problems.append)]
    assert found == ["a", "\\q", "c"]
    assert [x.record for x in problems] == ["record 2 (id 'b')"]


def test_table_that_is_cut_off(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"a": {"x": 1},\n')
    with pytest.raises(Fatal, match=r"record 2: the file is damaged or cut off .*closing brace"):
        list(read_table(path, fatal))
    data = gzip.compress(json.dumps({str(n): {"x": n} for n in range(999)}).encode())
    (tmp_path / "table.json.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(Fatal, match=r"damaged or cut off.*; download the file again"):
        list(read_table(tmp_path / "table.json.gz", fatal))
