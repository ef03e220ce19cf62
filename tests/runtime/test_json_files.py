"""JSON of strangers: an error that names the file, whatever it holds."""

import dataclasses
import json
import math
import os
from typing import Literal, NamedTuple

import pytest

from afmrl_jax.errors import CatalogueError, ConfigError, RunError
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import (
    checked,
    json_text,
    lines_of,
    parse_json,
    read_bytes,
    read_checked,
    read_json,
    read_records,
)
from afmrl_jax.runtime.metrics_log import MetricsLog, read_metrics


def test_what_was_written_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None, "Öl \u2028 😀"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None, "Öl \u2028 😀"]}


# F2
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'{"a": "\xac"}', "is not UTF-8"),
        (b"[" * 100_000, "is nested deeper"),
        (b"[" * 80 + b"]" * 80, "is nested deeper"),
        (b"9" * 5000, "a whole number of 5000 digits"),
        (b"[1e999]", "too large"),
        (b"[NaN]", "NaN is not"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'"\\ud800"', "half of a surrogate pair"),
    ],
    ids=lambda x: x[:12].decode(errors="replace") if isinstance(x, bytes) else "",
)
def test_what_is_refused(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(CatalogueError, match=rf"a\.json .*{reason}.*; mend it"):
        read_json(path, error=CatalogueError, remedy="mend it")


# F17
def test_pipes_devices_folders_and_large_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "large").write_bytes(b" " * 11)
    for name, reason in {
        "pipe": "is a pipe or a device",
        "zero": "is a pipe or a device",
        "folder": "cannot be read",
        "loop": "cannot be read",
        "none": "cannot be read",
        "null\0": "cannot be read",
        "large": "is larger than 10 bytes",
    }.items():
        with pytest.raises(RunError, match=reason):
            read_bytes(tmp_path / name, limit=10)


def test_surrogate_pairs_and_a_byte_order_mark_are_fine():
    assert parse_json(b'\xef\xbb\xbf"\\ud83d\\ude00"', "x") == "😀"


class Point(NamedTuple):
    x: float
    tags: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shape:
    name: Literal["square", "circle"]
    points: list[Point]
    width: int = 1

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError("width must be positive")


def test_values_are_checked_and_not_converted(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "square", "points": [{"x": 1, "tags": [3]}]})
    assert read_checked(path, Shape) == Shape("square", [Point(1.0, (3,))])
    for value, reason in [
        ({"name": "heart", "points": []}, "name: input should be 'square' or 'circle'"),
        ({"name": "square", "points": [{"x": "1"}]}, "points.0.*x: input should be a valid number"),
        ({"name": "square", "points": [], "width": 1.5}, "width: input should be a valid integer"),
        ({"name": "square", "points": [], "width": 0}, "width must be positive"),
        ({"points": []}, "name: field required"),
        ({"name": "square", "points": [{"x": float("inf")}]}, "a number that is not finite"),
        ([], "should be an object"),
    ]:
        with pytest.raises(RunError, match=rf"a\.json: .*{reason}"):
            checked(Shape, value, path)


def test_records_are_whole_and_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_records(path) == []
    # A title may hold what Unicode calls a line separator.
    lines = [{"t": "a\u2028b"}, {"t": "c\x85d", "loss": float("nan")}]
    text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines)
    path.write_text(text + '{"to')
    assert [x["t"] for x in read_records(path)] == ["a\u2028b", "c\x85d"]
    assert path.read_text().endswith('{"to')
    read_records(path, repair=True)
    assert path.read_text() == text
    path.write_text(text + "[]\n")
    with pytest.raises(RunError, match=r"lines\.jsonl:3 is not an object"):
        read_records(path)


def test_lines_are_numbered_and_bounded(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"one\r\n\n \nfour\nfive")
    assert list(lines_of(path)) == [(1, b"one"), (4, b"four"), (5, b"five")]
    with pytest.raises(CatalogueError, match=r"lines\.jsonl:1 is longer than 3 bytes"):
        list(lines_of(path, limit=3, error=CatalogueError))


def test_what_is_no_number_of_json_is_written_as_null(tmp_path):
    value = {"a": [1.5, float("nan"), (float("inf"), "NaN")], "b": {"c": -float("inf")}, "d": None}
    path = write_json(tmp_path / "x.json", value)
    expected = {"a": [1.5, None, [None, "NaN"]], "b": {"c": None}, "d": None}
    assert parse_json(path.read_text(), path) == expected
    assert parse_json(json_text({"ö": 1}), "x") == {"ö": 1}


def test_a_metric_that_is_no_number_is_read_as_one(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": float("nan"), "accuracy": 0.5})
    log.close()
    parse_json((tmp_path / "metrics.jsonl").read_text(), "line")
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line.pop("loss"))
    assert line == {"step": 1, "accuracy": 0.5}
