"""A run with a broken file has a report, or an error that names the file and what is wrong."""

import copy
import json
import random
import re

import pytest

from afmrl_jax.config import RunConfig, to_dict
from afmrl_jax.errors import RunError
from afmrl_jax.reporting import detail, fragments, plots, report
from afmrl_jax.reporting.report import build_report

from .conftest import evaluation, gallery, write_json, write_run

OTHERS = (None, "x", 7, -1.5, True, [], {}, [1], [[]], {"a": [1]}, float("nan"), 1e300, 10**18)
SAMPLED = {
    "step": 10,
    "listing_id": "a",
    "title": "chair",
    "lists": [{"text": "color: red", "reward": 0.5, "rank": 2, "malformed": False}],
}
START = {"k": 3, "recall_at": {"1": 0.31, "3": 0.49}, "means": {"held_out/reward": 0.4}}
DONE = {"inputs": {"a": "b"}, "fingerprint": "f", "outputs": {"x": "0" * 64}, "seconds": 3.0}
FILES = {
    "evaluation.json": evaluation(),
    "gallery.json": gallery(),
    "config.json": to_dict(RunConfig.demo()),
    "rar/samples.jsonl": SAMPLED,
    "rar/held_out_start/start.json": START,
    "infonce/DONE.json": DONE,
    "timings.json": {"infonce": 3.0, "peak_memory_gb": 2.0},
}


def write_file(run, name, value):
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n")


def places(value, prefix=()):
    """Every place in a JSON value; of a list only the first and the last."""
    if prefix:
        yield prefix
    parts = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        parts = dict.fromkeys((0, len(value) - 1)) if value else ()
        parts = [(n, value[n]) for n in parts]
    for name, inner in parts:
        yield from places(inner, (*prefix, name))


def broken(value, place, other):
    """The value with another one in a place, or without what is there."""
    value = copy.deepcopy(value)
    inner = value
    for name in place[:-1]:
        inner = inner[name]
    if other is KeyError:
        del inner[place[-1]]
    else:
        inner[place[-1]] = other
    return value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "demo")
    for path in run.glob("*/metrics.jsonl"):
        path.unlink()
    write_file(run, "rar/metrics.jsonl", {"step": 1, "reward": 0.5})
    for name, value in FILES.items():
        write_file(run, name, value)
    return run


def complaint(run):
    """What is wrong with a run, or nothing if it has a report."""
    try:
        build_report(run)
    except RunError as error:
        return str(error)
    return ""


@pytest.fixture
def undrawn(monkeypatch):
    """No curves and no pictures, which take most of the time."""

    def only_read(plot, number=0):
        assert all(isinstance(curve.values, list) for curve in plot.curves)

    monkeypatch.setattr(plots, "draw", only_read)
    monkeypatch.setattr(detail, "draw", only_read)
    monkeypatch.setattr("afmrl_jax.reporting.gallery.thumbnail", lambda data: None)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", FILES)
def test_a_field_that_is_gone_or_of_another_type_is_shown_as_missing_or_named(whole, name):  # F12
    rng, original = random.Random(0), FILES[name]
    found = list(places(original))
    # The long campaign is elsewhere.
    found = rng.sample(found, min(len(found), 25))
    try:
        refused = 0
        for place in found:
            for other in (KeyError, *rng.sample(OTHERS, 2)):
                write_file(whole, name, broken(original, place, other))
                said = complaint(whole)
                refused += said != ""
                assert not said or re.search(rf"{name}(:\d+)?: .+; ", said), said
        assert refused or name in ("timings.json", "config.json")
    finally:
        write_file(whole, name, original)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("data", [b"\xac{}", b"[" * 100_000, b"7" * 5000, b"[]\n", b"3\n", b""])
def test_a_file_of_another_kind_is_named(whole, name, data):  # F2, F12
    before = (whole / name).read_bytes()
    (whole / name).write_bytes(data + b"\n")
    try:
        said = complaint(whole)
        # An empty file of lines has no lines, and a gallery may have no queries.
        fine = (name, data) == ("gallery.json", b"[]\n")
        assert fine or name in said
    finally:
        (whole / name).write_bytes(before)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"loss": 1.0}, "step: field required"),
        ({"step": "x"}, "step: input should be a valid integer"),
        ({"step": 1.5}, "step: input should be a valid integer"),
        ({"step": 3, "loss": "x"}, "loss: input should be a valid number"),
        ({"step": 3, "loss": [1]}, "loss: input should be a valid number"),
        ([], "is not an object"),
    ],
)
def test_a_broken_line_of_metrics_is_named(tmp_path, line, reason):  # F12
    run = write_run(tmp_path / "run")
    with (run / "rar" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    for show in (build_report, fragments.curves):
        with pytest.raises(RunError, match=rf"rar/metrics\.jsonl:\d+.*{reason}.*delete the line"):
            show(run)


def test_curves_of_odd_numbers_are_drawn(tmp_path):
    lines = [
        {"step": n, "loss": x, "reward": x}
        for n, x in enumerate((1.0, float("nan"), float("inf"), 1e300, -1e300, 10**18, 1e-300))
    ]
    for stage in ("infonce", "rar"):
        (tmp_path / stage).mkdir()
        text = "".join(json.dumps(x) + "\n" for x in lines)
        (tmp_path / stage / "metrics.jsonl").write_text(text)
    assert len(plots.main_plots(tmp_path)) == 2


def test_files_without_an_end_are_not_read(tmp_path):  # F17
    run = write_run(tmp_path / "run")
    for name in ("evaluation.json", "rar/DONE.json", "rar/samples.jsonl", "rar/metrics.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to("/dev/zero")
    assert report.build_report(run).is_file()


def test_a_settings_file_of_too_many_cycles_is_named(tmp_path):  # F11
    run = write_run(tmp_path / "run")
    write_json(run / "config.json", {"cit": {"cycles": 10**9}})
    with pytest.raises(RunError, match=r"config\.json: cit\.cycles"):
        build_report(run)
    with pytest.raises(RunError, match=r"config\.json: cit\.cycles"):
        fragments.status(run, 1.0)
