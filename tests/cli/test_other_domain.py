"""A shop in another domain: check, train, embed, search, annotate, evaluate, report."""

import dataclasses
import json

import numpy as np
import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.retrieval.vector_file import VectorFile
from afmrl_jax.runs import embed as embedding
from afmrl_jax.testing import write_badge_catalogue
from experiments.reliability import large_catalogue


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_badge_catalogue(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    """A fast run on the shop; one device, because eight simulated ones only compile longer."""
    out = tmp_path_factory.mktemp("runs") / "badges"
    cli.main(["train", "--fast", "--catalogue", str(shop), "--out", str(out), "--mesh.data", "1"])
    return out


def on(run, catalogue, command, out):
    return [command, "--run", str(run), "--catalogue", str(catalogue), "--out", str(out)]


def test_check_finds_nothing(shop, capsys):
    cli.main(["catalogue-check", str(shop)])
    text = capsys.readouterr().out
    assert "120 listings of 30 products" in text
    assert "0 error(s)" in text


def test_check_fails_on_a_broken_record(tmp_path, capsys):
    folder = write_badge_catalogue(tmp_path / "shop", listings_per_product=2)
    (folder / "images" / "circle-a-red-0.png").write_bytes(b"broken")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["catalogue-check", str(folder), "--as-json"])
    assert exit_.value.code == 1
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    problems = [x["problem"] for x in lines if "problem" in x]
    (problem,) = [x for x in problems if x["severity"] == "error"]
    assert lines[-1]["summary"]["listings"] == 59
    assert "circle-a-red-0" in problem["record"]


@pytest.mark.slow
def test_training_writes_every_row_and_a_report(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["rows"]) == 5
    assert "latency" not in evaluation  # Left out by --fast.
    report = (run / "report.html").read_text()
    assert "afmrl+cit" in report


@pytest.mark.slow
@pytest.mark.parametrize("index", ["exact", "scann"])
def test_embed_then_search(run, shop, tmp_path, capsys, index):
    out = tmp_path / "badges"
    cli.main([*on(run, shop, "embed", out), "--index.kind", index])
    base = ["search", "--run", str(run), "--index", str(out), "--as-json", "-k", "3"]
    capsys.readouterr()
    picture = shop / "images" / "circle-a-red-0.png"
    for query in (
        ["--text", "red circle badge"],
        ["--image", str(picture)],
        ["--text", "red circle badge", "--image", str(picture)],
    ):
        cli.main(base + query)
        found = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
        assert len(found) == 3
        assert found[0]["score"] >= found[1]["score"] >= found[2]["score"]
        assert {"listing_id", "product_id", "title", "attributes"} <= found[0].keys()


@pytest.mark.slow
def test_a_listing_finds_itself(run, shop, tmp_path, capsys):
    out = tmp_path / "badges"
    cli.main([*on(run, shop, "embed", out), "--system", "infonce"])
    record = json.loads((shop / "listings.jsonl").read_text().splitlines()[7])
    capsys.readouterr()
    cli.main(
        [
            *("search", "--run", str(run), "--index", str(out), "--as-json"),
            *("--text", record["title"], "--image", str(shop / record["image"])),
        ]
    )
    best = json.loads(capsys.readouterr().out.splitlines()[0])
    assert best["score"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
def test_a_killed_embedding_goes_on_where_it_stopped(run, shop, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "badges"
    cli.main([*on(run, shop, "embed", whole), "--system", "infonce"])
    monkeypatch.setattr(embedding, "CHUNK_BATCHES", 1)
    monkeypatch.setattr(FinishedRun, "encoder", small_batches(FinishedRun.encoder))
    append, rows = VectorFile.append, []

    def noted(self, vectors, sources):
        rows.append(len(vectors))
        append(self, vectors, sources)

    def dies(self, vectors, sources):
        if self.done >= 64:
            raise KeyboardInterrupt
        noted(self, vectors, sources)

    monkeypatch.setattr(VectorFile, "append", dies)
    with pytest.raises(SystemExit):
        cli.main([*on(run, shop, "embed", out), "--system", "infonce"])
    assert not out.exists()
    monkeypatch.setattr(VectorFile, "append", noted)
    cli.main([*on(run, shop, "embed", out), "--system", "infonce"])
    assert rows == [32, 32, 32, 24], "what was embedded is not embedded again"
    one, two = (np.load(x / "index" / "vectors.npy") for x in (whole, out))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert {x.name for x in tmp_path.iterdir()} == {"whole", "badges"}


@pytest.mark.slow
def test_embed_replaces_its_own_output_and_nothing_else(run, shop, tmp_path, capsys):
    before = {x: x.read_bytes() for x in shop.rglob("*") if x.is_file()}
    with pytest.raises(SystemExit):
        cli.main([*on(run, shop, "embed", shop), "--system", "infonce"])
    assert "was not written by `afmrl embed`" in capsys.readouterr().err
    assert {x: x.read_bytes() for x in shop.rglob("*") if x.is_file()} == before
    assert not list(shop.parent.glob(f"*{shop.name}.*"))
    file = tmp_path / "notes"
    file.write_text("mine")
    with pytest.raises(SystemExit):
        cli.main([*on(run, shop, "embed", file), "--system", "infonce"])
    assert file.read_text() == "mine"
    out = tmp_path / "index"
    out.mkdir()
    for _ in range(2):
        cli.main([*on(run, shop, "embed", out), "--system", "infonce"])
    assert (out / "listings.jsonl").is_file()


def small_batches(encoder):
    """`FinishedRun.encoder` with batches of 32."""
    return lambda self, system: dataclasses.replace(encoder(self, system), batch_size=32)


@pytest.mark.slow
def test_queries_of_a_file(run, shop, tmp_path, capsys):
    out, queries = tmp_path / "badges", shop / "queries.jsonl"
    cli.main(on(run, shop, "embed", out))
    picture = "images/circle-a-red-0.png"
    rows = [{"id": "q", "text": "red badge"}, {"image": picture}, {"text": "x", "image": picture}]
    queries.write_text("\n".join(json.dumps(x) for x in rows))
    ask = ["search", "--run", str(run), "--index", str(out), "--queries", str(queries), "-k", "2"]
    capsys.readouterr()
    cli.main(ask)
    found = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert [x["query"] for x in found] == ["q", "2", "3"]
    assert [len(x["results"]) for x in found] == [2, 2, 2]
    queries.write_text('{"text": "fine"}\n{"image": "nowhere.png"}')
    with pytest.raises(SystemExit):
        cli.main(ask)
    error = capsys.readouterr().err
    assert "line 2" in error
    assert "no picture" in error


@pytest.mark.slow
def test_a_large_catalogue_survives_kills(run, tmp_path):
    settings = large_catalogue.Settings(
        run=run, listings=300, pictures=20, kills=1, out=tmp_path / "large",
        result=tmp_path / "large.json",
    )  # fmt: skip
    large_catalogue.main(settings)
    record = json.loads((tmp_path / "large.json").read_text())
    assert record["figures"]["listings"] == 300
    assert record["figures"]["largest_difference"] < 1e-4
    commands = [x["command"] for x in record["details"]]
    assert commands[0] == "catalogue-check"
    assert {"catalogue-convert", "embed"} <= set(commands)


@pytest.mark.slow
def test_annotate_then_embed_with_the_same_attributes(run, shop, tmp_path):
    texts = tmp_path / "texts.jsonl"
    cli.main(on(run, shop, "annotate", texts))
    assert len(texts.read_text().splitlines()) == 120
    out = tmp_path / "badges"
    cli.main([*on(run, shop, "embed", out), "--attributes", str(texts)])
    assert (out / "listings.jsonl").is_file()


@pytest.mark.slow
def test_evaluate_on_a_catalogue_that_the_run_never_saw(run, tmp_path, capsys):
    other = write_badge_catalogue(tmp_path / "other", seed=9)
    out = tmp_path / "evaluation.json"
    cli.main([*on(run, other, "evaluate", out), "--split", "all"])
    evaluation = json.loads(out.read_text())
    assert [row["n_queries"] for row in evaluation["rows"]] == [120] * 5
    assert evaluation["rows"][0]["classification"] is None  # Nothing else to fit it on.
    assert "afmrl+cit" in capsys.readouterr().out
    # Another catalogue than the run's own cannot be compared with it, but with itself it can.
    with pytest.raises(SystemExit):
        cli.main(["compare", str(run), str(out)])
    assert "were judged on different listings" in capsys.readouterr().err
    cli.main(["compare", str(out), str(out), "--system-a", "infonce", "--task", "fine"])
    assert "R@10" in capsys.readouterr().out


@pytest.mark.slow
def test_report_to_another_file(run, tmp_path):
    cli.main(["report", "--run", str(run), "--out", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--run", "RUN", "--index", "nowhere", "--text", "x"], "afmrl embed"),
        (["search", "--run", "RUN", "--index", "nowhere"], "needs --text, --image"),
        (["evaluate", "--run", "nowhere", "--catalogue", "SHOP", "--out", "x"], "run directory"),
        (["annotate", "--run", "RUN", "--catalogue", "nowhere", "--out", "x"], "does not exist"),
        (
            ["embed", "--run", "RUN", "--catalogue", "SHOP", "--out", "x", "--system", "best"],
            "choose from infonce",
        ),
        (["report", "--run", "nowhere"], "no run directory"),
        (["export", "--run", "nowhere", "--out", "x"], "run directory"),
    ],
)
def test_mistakes_get_one_line(run, shop, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run), "SHOP": str(shop)}
    with pytest.raises(SystemExit) as exit_:
        cli.main([places.get(x, x) for x in arguments])
    assert exit_.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.glob("x*"))


def test_help_describes_every_command(capsys):
    for command in (
        "train",
        "config",
        "catalogue-check",
        "catalogue-convert",
        "annotate",
        "embed",
        "search",
        "evaluate",
        "compare",
        "baselines",
        "export",
        "report",
        "audit-negatives",
    ):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert len(capsys.readouterr().out) > 200
