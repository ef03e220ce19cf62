"""CSV and TSV as shops have them, and columns under other names."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.tables import delimited
from afmrl_jax.data.catalogue.tables.columns import parse_columns
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.testing import write_badge_catalogue

NAMES = ("listing_id", "product_id", "title", "image", "category", "attributes", "seller")
OTHER = {"listing_id": "id", "product_id": "sku", "title": "Product name", "image": "photo"}
COLUMNS = ",".join(f"{ours}={theirs}" for ours, theirs in OTHER.items())


@pytest.fixture
def folder(tmp_path):
    return write_badge_catalogue(tmp_path / "shop", listings_per_product=2)


def records(folder):
    return [json.loads(x) for x in (folder / "listings.jsonl").read_text().splitlines()]


def table(rows, names=NAMES, **form):
    file = io.StringIO()
    writer = csv.writer(file, **form)
    writer.writerow(names)
    for x in rows:
        x = x | {"attributes": json.dumps(x["attributes"])}
        writer.writerow([x[name] for name in NAMES])
    return file.getvalue()


def errors_of(path, columns=None):
    problems = []
    check_catalogue(path, problems.append, columns=columns)
    return [x for x in problems if x.severity == "error"]


@pytest.mark.parametrize(
    ("name", "form", "change"),
    [
        ("listings.csv", {}, str.encode),
        ("listings.csv", {"delimiter": ";"}, lambda x: b"\xef\xbb\xbf" + x.encode()),
        ("listings.csv", {"delimiter": ";"}, lambda x: b"sep=;\r\n" + x.encode()),
        ("listings.csv", {"lineterminator": "\n"}, lambda x: x.rstrip().encode() + b"\n\n,,,\n"),
        ("listings.csv", {"quoting": csv.QUOTE_ALL, "delimiter": "|"}, str.encode),
        ("listings.tsv", {"delimiter": "\t"}, str.encode),
        ("listings.csv.gz", {}, lambda x: gzip.compress(x.encode())),
    ],
)
def test_a_table_reads_as_the_lines_do(folder, name, form, change):
    whole = load_catalogue(folder)
    rows = records(folder)
    text = table(rows, **form)
    (folder / "listings.jsonl").unlink()
    (folder / name).write_bytes(change(text))
    found = load_catalogue(folder)
    assert found.listings == whole.listings
    assert found.fingerprint == whole.fingerprint
    assert load_catalogue(folder / name).listings == whole.listings


def test_quoted_texts_hold_separators_quotes_and_lines(folder):
    rows = records(folder)
    rows[3]["title"] = 'Chair, 5" high;\nred é'
    path = folder / "x.csv"
    path.write_text(table(rows), encoding="utf-8", newline="")
    found = load_catalogue(path).listings
    assert found[3].title == rows[3]["title"]
    assert len(found) == 60


def lines_of(folder):
    return table(records(folder), lineterminator="\n").encode().splitlines()


BROKEN = {
    "few": (b"a,b", "it has 2 cells, but the first line has 7"),
    "many": (b"a,b,c,d,e,f,g,h", "it has 8 cells"),
    "latin-1": (
        b"a,b,Fl\xe4che,d,e,f,g",
        "not UTF-8 (byte 0xE4)",
    ),
    "quote": (b'a,"b"c,d,e,f,g,h', "it is not CSV"),
    "mac": (b"a,b\rc,d", "line ends of an old Mac"),
    "huge": (b"a" * 200_000, "a cell is longer than 131,072 letters"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_named_and_the_others_are_read(folder, kind):
    line, what = BROKEN[kind]
    lines = lines_of(folder)
    path = folder / "x.csv"
    path.write_bytes(b"\n".join([*lines[:4], line, *lines[4:]]))
    (error,) = errors_of(path)
    assert error.record == "line 5"
    assert what in error.what
    assert error.file == str(path)
    assert error.remedy
    assert len(load_catalogue(path, skip_bad=True)) == 60
    with pytest.raises(CatalogueError, match=r"x\.csv: line 5: .*--skip-bad"):
        load_catalogue(path)


def test_a_quote_that_is_not_closed_is_named_with_the_lines_it_takes(folder):
    lines = lines_of(folder)
    path = folder / "x.csv"
    path.write_bytes(b"\n".join([*lines, b'"a,b', b"c", b"d"]))
    (error,) = errors_of(path)
    assert error.record == "line 62 to 64"
    assert "quote" in error.what


def test_a_record_takes_bounded_memory_however_many_lines_it_has(folder, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_LINE", 4000)
    lines = lines_of(folder)
    path = folder / "x.csv"
    path.write_bytes(b"\n".join([*lines[:4], b'"', *[b'","'] * 2000, *lines[4:]]))
    found = errors_of(path)
    assert found[0].record.startswith("line 5 to ")
    assert "longer than 4,000 bytes" in found[0].what
    path.write_bytes(b"\n".join([*lines[:4], b"x" * 5000, *lines[4:]]))
    (error,) = errors_of(path)
    assert error.record == "line 5"
    assert len(load_catalogue(path, skip_bad=True)) == 60


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "no line with the names"),
        (b"\n", "no line with the names"),
        ("listing_id,title\n".encode("utf-16"), "UTF-16"),
        (b"title,title\n", "'title' is there twice"),
        (b"t\xe4,b\n", "names of the columns are not UTF-8 (byte 0xE4)"),
        (b"a" * 200_000, "cannot be read (field larger than"),
        (b"title,image\n", "the column listing_id, product_id is missing; it has title, image"),
        (b'sep="\nx', ""),
        (b"sep=\r\nx", ""),
        (b"\x1f\x8b123", ""),
    ],
)
def test_a_table_without_names_of_columns_is_refused(tmp_path, data, what):
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    error, *_ = errors_of(path)
    assert error.record == "file"
    assert what in error.what
    assert error.remedy


def test_damage_of_a_compressed_table_is_named(folder):
    path = folder / "x.csv.gz"
    data = gzip.compress(b"\n".join(lines_of(folder)))
    for end in (0, 3, 30, len(data) // 2, len(data) - 4):
        path.write_bytes(data[:end])
        error, *_ = errors_of(path)
        assert "damaged" in error.what or "names of the columns" in error.what


@pytest.mark.parametrize("end", ["csv", "parquet", "arrow", "jsonl"])
def test_columns_of_other_names(folder, end):
    rows = [
        {OTHER.get(name, name): json.dumps(x[name]) if name == "attributes" else x[name]
         for name in NAMES} | {"title": "of the shop"}
        for x in records(folder)
    ]  # fmt: skip
    path = folder / f"products.{end}"
    if end == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif end == "jsonl":
        path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    else:
        found = pa.Table.from_pylist(rows)
        if end == "parquet":
            pq.write_table(found, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, found.schema) as out:
                out.write_table(found)
    assert load_catalogue(path, columns=COLUMNS).fingerprint == load_catalogue(folder).fingerprint
    with pytest.raises(ConfigError, match=r"no column 'nam'; it has id, sku, Product name, photo"):
        load_catalogue(path, columns=f"{COLUMNS},seller=nam")
    one, two = (open_rows(path, columns=x) for x in (COLUMNS, COLUMNS + ",seller=title"))
    assert one.stamp != two.stamp


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("title", "'title' is no pair"),
        ("title=", "'title' is no pair"),
        ("title=a,,image=b", "'' is no pair"),
        ("name=title", "a listing has no column 'name' to take 'title' for; it has listing_id"),
        ("title=a,title=b", "names a column twice"),
        ('{"title": 1}', "title"),
        ('{"title"', "--columns is not valid JSON"),
    ],
)
def test_a_map_that_is_none_is_refused(text, what):
    with pytest.raises(ConfigError, match=r"^--columns") as error:
        parse_columns(text)
    assert what in str(error.value)


def test_a_name_with_a_comma_is_given_as_json():
    assert parse_columns('{"title": "name, long"}') == {"title": "name, long"}
    assert parse_columns(" ") == {}


def test_what_has_the_columns_of_a_listing_takes_no_map(folder, tmp_path, raw_folder):
    cli.main(["catalogue-convert", str(folder), "--out", str(tmp_path / "store")])
    for name in ("furniture", tmp_path / "store"):
        with pytest.raises(ConfigError, match=r"is read without columns; leave --columns out"):
            load_catalogue(name, columns="title=name")
    with pytest.raises(ConfigError, match=r"abo, whose reader has no option 'columns'"):
        load_catalogue(raw_folder("abo"), columns="title=name")


def test_a_folder_with_a_table_of_another_name_says_to_give_the_file(folder):
    (folder / "listings.jsonl").rename(folder / "products.csv")
    with pytest.raises(
        CatalogueError, match=r"but a table: give the file itself, as in .*products"
    ):
        load_catalogue(folder)


def test_a_workbook_is_to_be_saved_as_csv(folder):
    (folder / "Products.XLSX").write_bytes(b"PK")
    with pytest.raises(CatalogueError, match=r"is a workbook; save its sheet as a file of CSV"):
        load_catalogue(folder / "Products.XLSX")


def test_addresses_and_other_places_are_no_pictures(folder, tmp_path):
    rows = records(folder)
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    rows[1]["image"] = "https://shop.example/a.jpg"
    rows[2]["image"] = "../secret.png"
    rows[3]["image"] = "images/link.png"
    rows[4]["image"] = "images\\gone.png"
    rows[6]["listing_id"] = rows[5]["listing_id"]
    path = folder / "x.csv"
    path.write_text(table(rows), newline="")
    what = [x.what for x in errors_of(path)]
    assert "is an address" in what[0]
    assert "outside the catalogue folder" in what[1]
    assert "outside the catalogue folder" in what[2]
    assert "does not exist" in what[3]
    assert "occurs twice" in what[4]
    assert len(what) == 5


def test_commands_take_the_map(folder, tmp_path, capsys):
    path = folder / "products.csv"
    path.write_text(table(records(folder), [OTHER.get(x, x) for x in NAMES]), newline="")
    cli.main(["catalogue-check", str(path), "--columns", COLUMNS])
    assert "60 listings of 30 products" in capsys.readouterr().out
    cli.main(["catalogue-convert", str(path), "--columns", COLUMNS, "--out", str(tmp_path / "s")])
    assert load_catalogue(tmp_path / "s").column("title") == load_catalogue(folder).column("title")
    with pytest.raises(SystemExit):
        cli.main(["catalogue-check", str(path), "--columns", "title=nam"])
    assert "it has id, sku, Product name" in capsys.readouterr().err
