"""Files of strangers in the place of listings: an error that names them, and never a hang."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afmrl_jax.data.catalogue import lines as text_lines
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.testing import write_badge_catalogue

BROKEN = {
    "deep": b"[" * 100_000,
    "digits": b'{"listing_id": ' + b"9" * 5000 + b"}",
    "twice": b'{"listing_id": "a", "listing_id": "b"}',
    "surrogate": b'{"listing_id": "\\ud800"}',
    "bytes": b'{"listing_id": "\xac"}',
    "nan": b'{"listing_id": NaN}',
    "list": b"[1]",
}


@pytest.fixture
def folder(tmp_path):
    return write_badge_catalogue(tmp_path / "shop", listings_per_product=2)


def errors_of(folder):
    problems = []
    check_catalogue(folder, problems.append)
    return [x for x in problems if x.severity == "error"]


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_check_goes_on_after_a_broken_line(folder, line):  # F3
    path = folder / "listings.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[3:], b"{last"]))
    found = errors_of(folder)
    assert [x.record for x in found] == ["line 4", "line 62"]
    assert all(x.file == str(path) and x.remedy for x in found)
    assert len(load_catalogue(folder, skip_bad=True)) == 60
    with pytest.raises(CatalogueError, match=r"listings\.jsonl: line 4"):
        load_catalogue(folder)


def test_a_line_without_end_takes_bounded_memory_and_the_rest_is_read(folder, monkeypatch):  # F17
    monkeypatch.setattr(text_lines, "MAX_LINE", 2000)
    monkeypatch.setattr(text_lines, "LONGEST_SKIPPED", 1 << 20)
    path = folder / "listings.jsonl"
    lines = path.read_bytes().splitlines()
    path.unlink()

    def pack(length):
        data = b"\n".join([*lines[:3], b" " * length, *lines[3:]])
        (folder / "listings.jsonl.gz").write_bytes(gzip.compress(data))

    for length in (2000, 2001, 50_000):
        pack(length)
        (error,) = [str(x) for x in errors_of(folder)] if length > 2000 else ["line 4: longer than"]
        assert "line 4: longer than" in error
        assert len(load_catalogue(folder, skip_bad=True)) == 60
    pack(5 << 20)
    sizes = []

    class Counted(gzip.GzipFile):
        def readline(self, size=-1):
            found = super().readline(size)
            sizes.append(len(found))
            return found

    monkeypatch.setattr(text_lines.gzip, "GzipFile", Counted)
    found = errors_of(folder)
    assert "the rest of the file is not read" in found[0].what
    assert max(sizes) <= 2001
    assert sum(sizes) < 2 << 20


def damaged(data, place):
    out = bytearray(data)
    out[place] ^= 0x55
    return bytes(out)


def test_damaged_pages_of_parquet_are_named(folder):  # F6
    lines = (folder / "listings.jsonl").read_text().splitlines()
    rows = [{**json.loads(x), "attributes": None} for x in lines]
    (folder / "listings.jsonl").unlink()
    path = folder / "listings.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    whole = path.read_bytes()
    seen = 0
    for place in range(4, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(damaged(whole, place))
        found = errors_of(folder)
        seen += any("damaged" in x.what for x in found)
        assert all(x.file == str(path) and x.remedy for x in found)
    assert seen > 5
    for data in (b"", whole[:100], b"PAR1" * 10):
        path.write_bytes(data)
        assert "not a Parquet file" in errors_of(folder)[0].what


@pytest.mark.parametrize("kind", ["folder", "dangling", "loop", "pipe", "device"])
def test_listings_that_are_no_file_are_named(tmp_path, kind):  # F5, F17
    path = tmp_path / "listings.jsonl"
    {
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to("gone"),
        "loop": lambda: path.symlink_to(path),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    with pytest.raises(CatalogueError, match=r"listings\.jsonl is a folder, a pipe.*; put"):
        open_rows(tmp_path)
    with pytest.raises(CatalogueError, match=r"listings\.jsonl (is a pipe|holds none)"):
        open_rows(path)


@pytest.mark.parametrize("name", ["notes.json", "a.jsonl"])
def test_guessing_a_layout_opens_no_pipe_and_reads_nothing_endless(tmp_path, name):  # F5, F17
    os.mkfifo(tmp_path / name)
    (tmp_path / f"zero-{name}").symlink_to("/dev/zero")
    (tmp_path / f"gone-{name}").symlink_to("gone")
    (tmp_path / f"folder-{name}").mkdir()
    with pytest.raises(CatalogueError, match=r"holds none of listings\.parquet"):
        open_rows(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "nul\0"])
def test_a_catalogue_whose_name_no_folder_can_have(name):
    with pytest.raises(CatalogueError, match=r"catalogue .*; give `furniture`"):
        open_rows(name)


def test_options_of_another_type_are_refused(raw_folder):
    folder = raw_folder("abo")
    assert open_rows(folder, {"other_images": None}).options == {"other_images": None}
    for options in ({"language": 2}, {"other_images": "x"}, {"size": ["small"]}):
        with pytest.raises(ConfigError, match=f"option '{next(iter(options))}' of abo"):
            open_rows(folder, options)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": "\xac"}', b"[" * 100_000, None])
def test_a_broken_description_of_a_tfds_dataset_is_named(raw_folder, tmp_path, name, content):  # F7
    from afmrl_jax.data.catalogue.published.builders import M5Product, prepare

    folder = prepare(M5Product, raw_folder("m5product"), tmp_path / "data").data_dir
    path = Path(folder) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CatalogueError, match="; "):
        open_rows(folder)


def test_a_description_of_features_imports_no_code_but_that_of_tfds(raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import M5Product, prepare

    builder = prepare(M5Product, raw_folder("m5product"), tmp_path / "data")
    path = Path(builder.data_dir) / "features.json"
    text = path.read_text().replace("tensorflow_datasets.core.features.text_feature.Text", "this.X")
    path.write_text(text)
    with pytest.raises(CatalogueError, match=r"features\.json names a class.*'this\.X'"):
        open_rows(builder.data_dir)
