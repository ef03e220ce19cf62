"""`afmrl audit-negatives` on a tiny run over badges, some of which are listed under two ids."""

import dataclasses
import json

import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.config import (
    AgclConfig,
    BackboneConfig,
    MeshConfig,
    MiningConfig,
    RunConfig,
)
from afmrl_jax.errors import AfmrlError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import TEXTS
from afmrl_jax.runs import audit as auditing
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.testing import write_badge_catalogue

from .conftest import HOSTILE
from .test_report import Page


def second_ids(folder):
    """Two badges of the train split under a second id: one unknown to training, one known."""
    path = folder / "listings.jsonl"
    records = [json.loads(x) for x in path.read_text().splitlines()]
    for record in records:
        product, number = record["product_id"], int(record["listing_id"][-1])
        if product == "square-a-blue":
            record["duplicate_group"] = "blue squares"
        if product in ("square-a-red", "square-a-blue") and number > 1:
            record["product_id"] = f"{product}-b"
            record["duplicate_of"] = product
        if product == "square-k-green":
            record["title"] = HOSTILE
    path.write_text("\n".join(json.dumps(x) for x in records))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_models):
    """The stage that trains R, with attributes and hard negatives."""
    catalogue = second_ids(write_badge_catalogue(tmp_path_factory.mktemp("shop"), splits=True))
    config = RunConfig(
        catalogue=str(catalogue),
        vocab_size=300,
        mesh=MeshConfig(data=1),
        backbone=BackboneConfig(steps=0),
        agcl=AgclConfig(
            steps=4,
            batch_size=12,
            sibling_share=0,
            duplicate_share=0.3,
            delta=0.02,
            agreement_rho=0.9,
            mining=MiningConfig(1, every=2, depth=40),
        ),
    )
    out = tmp_path_factory.mktemp("runs") / "badges"

    pipeline = Pipeline(out, config)
    pipeline._tokenizer_stage()
    lines = [
        {
            "listing_id": x.listing_id,
            "attributes": f"shape: square; colour: {x.product_id.split('-')[2]}",
        }
        for x in pipeline.catalogue.subset("train").listings
    ]

    def write(folder):
        folder.mkdir(exist_ok=True)
        (folder / TEXTS).write_text("".join(json.dumps(x) + "\n" for x in lines))

    # As a generator would that tells colors well.
    pipeline.run.stage("annotate-distilled", {}, [TEXTS], write)
    pipeline.train_r("agcl-distilled", config.agcl, "annotate-distilled", in_input=True)
    pipeline.run.close()
    return out


def command(run, out, *options):
    cli.main(["audit-negatives", "--run", str(run), "--out", str(out), *options])
    return json.loads(out.with_suffix(".json").read_text()), Page(out.read_text())


def test_the_page_shows_what_the_json_holds(run, tmp_path, capsys):
    found, page = command(run, tmp_path / "page.html", "--batches", "3", "--shown", "5")
    size = found["batch_size"]
    assert (found["batches"], size, found["hard_negatives"]) == (3, 12, 1)
    assert found["pairs"] == 3 * (size * 2 * size - size)
    assert found["duplicates_known"]
    assert found["attributes_known"]
    assert f"{found['pairs']:,} pairs" in page.text
    assert f"{found['masked']['found']} of {found['unknown_false_negatives']}" in page.text
    for title in ("Settings and their effect", "nearest the threshold", "farthest", "heaviest"):
        assert title in page.text
    shown = [x for part in found["examples"].values() for x in part]
    assert {len(part) for part in found["examples"].values()} == {5}
    for pair in shown:
        for side in ("query", "candidate"):
            listing = found["listings"][str(pair[side])]
            assert listing["listing_id"] in page.text
        assert f"{pair['score']:.3f}" in page.text
        assert f"{pair['weight']:.2f}" in page.text
    assert f"{found['pairs']} pairs of 3 batches" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


def test_known_duplicates_are_masked_and_unknown_ones_are_counted(run, tmp_path):
    found, _ = command(run, tmp_path / "page.html", "--batches", "4", "--delta", "off")
    pairs = found["examples"]["heaviest"]
    assert found["unknown_false_negatives"] > 0
    listings = found["listings"]
    for pair in pairs:
        names = {listings[str(pair[s])]["true_product"] for s in ("query", "candidate")}
        assert "square-a-blue" not in names or len(names) == 2
        assert pair["same_product"] == (len(names) == 1)


def test_the_page_is_whole_and_runs_nothing(run, tmp_path):
    _, page = command(run, tmp_path / "page.html", "--shown", "40")
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.tags.count("img") > 20
    assert all(link.startswith(("data:image/jpeg", "#")) for link in page.links)
    assert "<script" not in (tmp_path / "page.html").read_text().lower()
    assert "alert('title')" in page.text


def test_overrides_change_what_is_looked_at_and_not_the_batches(run, tmp_path):
    own, _ = command(run, tmp_path / "own.html")
    options = ("--delta", "0.5", "--gamma", "1", "--agreement-rho", "off")
    other, page = command(run, tmp_path / "other.html", *options)
    assert other["trained_with"] == own["settings"] == own["trained_with"]
    assert (other["settings"]["delta"], other["settings"]["agreement_rho"]) == (0.5, None)
    assert other["unknown_false_negatives"] == own["unknown_false_negatives"]
    assert other["reasons"]["identity"] == own["reasons"]["identity"]
    assert other["reasons"]["margin"]["pairs"] < own["reasons"]["margin"]["pairs"]
    assert other["reasons"]["agreement"]["pairs"] == 0
    # Both pages try the same margins on the same pairs.
    tried = {row["value"]: row["pairs"] for row in own["deltas"]}
    assert all(tried.get(row["value"], row["pairs"]) == row["pairs"] for row in other["deltas"])
    assert "agreement_rho off 0.9" in page.text


@pytest.mark.parametrize(
    "given", [{"teacher_share": 0.95}, {"positive_weight": "neutral"}, {"oracle_mask": "family"}]
)
def test_a_loss_that_the_page_does_not_know_is_refused(run, tmp_path, monkeypatch, given):
    plain = auditing.Stage.of

    def varied(*where):
        stage = plain(*where)
        return dataclasses.replace(stage, settings=dataclasses.replace(stage.settings, **given))

    monkeypatch.setattr(auditing.Stage, "of", varied)
    (name,) = given
    with pytest.raises(AfmrlError, match=rf"agcl\.{name}.* Audit a stage without them"):
        auditing.audit(FinishedRun(run), tmp_path / "page.html")


def test_a_run_without_texts_still_shows_its_scores(run, tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "_lists", lambda *_: None)
    own = auditing.Stage.of

    def blind(*arguments):
        return dataclasses.replace(own(*arguments), reads=False)

    monkeypatch.setattr(auditing.Stage, "of", blind)
    auditing.audit(FinishedRun(run), tmp_path / "page.html", batches=1)
    found = json.loads((tmp_path / "page.html").with_suffix(".json").read_text())
    assert not found["attributes_known"]
    assert found["reasons"]["agreement"]["pairs"] == 0
    assert found["gammas"][-1]["ninetieth"] == 1.0
    assert "BM25 is 0 everywhere" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "page.json"], "ends in .html"),
        (["--out", "page.html", "--stage", "rar"], "agcl-distilled"),
        (["--out", "page.html", "--stage", "infonce"], "not finished"),
        (["--out", "page.html", "--batches", "0"], "at least 1"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(
    run, options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["audit-negatives", "--run", str(run), *options])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
