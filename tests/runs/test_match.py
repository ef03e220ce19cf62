"""Matching with a run: planted duplicates, another catalogue, decisions, kills."""

import csv
import json
import shutil
from collections import Counter

import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.reporting.matches import PAGE_TITLE
from afmrl_jax.runs.match import MatchSettings
from afmrl_jax.runs.matched import Inputs, match
from afmrl_jax.testing import write_badge_catalogue

SPLITS = ["distill"] * 3 + ["train"] * 3 + ["reward"] * 12 + ["test"] * 12
SETTINGS = MatchSettings(precision=0.6, neighbours=8, lowest=0.02)


def records(shop):
    return [json.loads(x) for x in (shop / "listings.jsonl").read_text().splitlines()]


def write(shop, rows):
    (shop / "listings.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return shop


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(written_run, tmp_path_factory):
    """The written run, with a catalogue that holds out more products than it trains on."""
    root = tmp_path_factory.mktemp("matching")
    shop = write_badge_catalogue(root / "badges")
    rows = records(shop)
    names = list(dict.fromkeys(x["product_id"] for x in rows))
    write(shop, [x | {"split": SPLITS[names.index(x["product_id"])]} for x in rows])
    folder = shutil.copytree(written_run, root / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"catalogue": str(shop)}))
    return FinishedRun(folder)


def with_duplicates(shop):
    """Three products are listed again under other ids, with the same pictures and titles."""
    rows = records(shop)
    copied = [x for x in rows if x["listing_id"].endswith("red-0")][:3]
    again = [
        x | {"listing_id": f"again-{n}", "product_id": f"other-{n}"} for n, x in enumerate(copied)
    ]
    write(shop, [*rows, *again])
    return [(x["listing_id"], y["listing_id"]) for x, y in zip(copied, again, strict=True)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_badge_catalogue(tmp_path_factory.mktemp("shop") / "shop", listings_per_product=2)


@pytest.fixture(scope="module")
def planted(shop):
    return with_duplicates(shop)


def matched(run, shop, out, system="infonce", **options):
    return match(run, system, Inputs(load_catalogue(shop)), out, SETTINGS, **options)


@pytest.fixture(scope="module")
def found_once(run, shop, planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "out"
    return matched(run, shop, out), out


@pytest.fixture
def found(found_once, tmp_path):
    about, out = found_once
    return about, shutil.copytree(out, tmp_path / "out")


def test_planted_duplicates_are_the_likeliest_pairs(found, planted):
    _, out = found
    pairs = read_csv(out / "pairs.csv")
    chances = [float(x["probability"]) for x in pairs]
    assert chances == sorted(chances, reverse=True)
    rank = {frozenset((x["left_id"], x["right_id"])): n for n, x in enumerate(pairs)}
    assert len(rank) == len(pairs)
    for pair in planted:
        assert rank[frozenset(pair)] < 10
        assert float(pairs[rank[frozenset(pair)]]["cosine"]) == pytest.approx(1, abs=1e-3)


def test_the_file_says_how_good_it_is(found):
    about, out = found
    assert json.loads((out / "match.json").read_text())["found"] == about["found"]
    calibration, test = about["calibration"], about["test"]
    assert calibration["listings"] == 48
    assert calibration["true_pairs"] == 12 * 6
    assert sum(x["pairs"] for x in calibration["reliability"]) == calibration["candidates"]
    assert (test["split"], test["listings"], test["true_pairs"]) == ("test", 48, 12 * 6)
    assert 0 < calibration["brier"] < 0.25
    assert 0 < test["average_precision"] <= 1
    assert test["recall"]["low"] <= test["recall"]["value"] <= test["recall"]["high"]


def test_a_page_without_scripts_shows_every_pair_of_the_review(found):
    _, out = found
    page, rows = (out / "review.html").read_text(), read_csv(out / "review.csv")
    assert rows
    assert PAGE_TITLE in page
    assert "<script" not in page
    assert page.count("<article") == len(rows)
    assert page.count("data:image/jpeg") == 2 * len(rows)
    assert [x["number"] for x in rows] == [str(n) for n in range(1, len(rows) + 1)]
    assert not any(x["decision"] for x in rows)


def test_clusters_are_of_accepted_pairs(found):
    about, out = found
    clusters = read_csv(out / "clusters.csv")
    sizes = Counter(x["cluster"] for x in clusters)
    assert len(sizes) == about["found"]["clusters"]
    assert all(n >= 2 for n in sizes.values())
    assert len({x["listing_id"] for x in clusters}) == len(clusters)


def test_the_next_call_embeds_only_what_is_new(run, shop, found, monkeypatch):
    from afmrl_jax.retrieval.encoder import Encoder

    counts, embed_rows = [], Encoder.embed_rows
    monkeypatch.setattr(
        Encoder,
        "embed_rows",
        lambda self, builder, rows, **options: (
            counts.append(len(rows)) or embed_rows(self, builder, rows, **options)
        ),
    )
    about, out = found
    again = matched(run, shop, out)
    assert again["found"] == about["found"]
    assert not counts  # The held-out and the test listings are embedded in another way.


def test_lists_are_compared_and_shown(run, shop, planted, tmp_path):
    about = matched(run, shop, tmp_path / "out", system="agcl+distilled")
    assert about["system"] == "agcl+distilled"
    assert len(about["calibration"]["model"]["slopes"]) == 3
    pairs = read_csv(tmp_path / "out" / "pairs.csv")
    assert {frozenset((x["left_id"], x["right_id"])) for x in pairs} >= set(map(frozenset, planted))


def test_another_catalogue_is_matched(run, shop, planted, tmp_path):
    other = write_badge_catalogue(tmp_path / "other", listings_per_product=1, seed=3)
    rows, own = records(other), {x["listing_id"]: x for x in records(shop)}
    copied = own[planted[0][0]]
    (other / "images" / "copy.png").write_bytes((shop / copied["image"]).read_bytes())
    new = copied | {
        "listing_id": "theirs",
        "product_id": "their-product",
        "image": "images/copy.png",
    }
    write(other, [*rows, new])
    out = tmp_path / "out"
    given = Inputs(load_catalogue(shop), load_catalogue(other))
    about = match(run, "infonce", given, out, SETTINGS)
    assert (about["found"]["listings"], about["found"]["searched"]) == (63, 31)
    first = read_csv(out / "pairs.csv")[:4]
    assert {x["left_id"] for x in first if x["right_id"] == "theirs"} >= {*planted[0]}
    clusters = read_csv(out / "clusters.csv")
    places = {x["listing_id"]: x for x in clusters if x["catalogue"] == "against"}
    assert places.keys() <= {x["listing_id"] for x in records(other)}


def test_decisions_about_another_shop_make_one_catalogue_of_both(run, shop, planted, tmp_path):
    """Its listings have ids that the first has, too; they are other listings."""
    other = write_badge_catalogue(tmp_path / "other", listings_per_product=1, seed=3)
    out, theirs = tmp_path / "out", records(other)
    own = {x["listing_id"]: x for x in records(shop)}
    shared = [x for x in theirs if x["listing_id"] in own]
    assert len(shared) > 2
    one, two = planted[0][0], shared[1]["listing_id"]
    told = tmp_path / "told.csv"
    told.write_text(
        f"left_id,right_id,decision\n{one},{shared[0]['listing_id']},same\n{two},{two},different\n"
    )
    arguments = ["match", "--run", run.folder, "--catalogue", shop, "--against", other]
    arguments += ["--out", out, "--system", "infonce", "--no-evaluate", "--decisions"]
    cli.main([str(x) for x in [*arguments, told]])
    labelled = load_catalogue(out / "labelled")
    assert len(labelled) == len(own) + len(theirs)
    products = dict(zip(labelled.column("listing_id"), labelled.column("product_id"), strict=True))
    assert products[f"{shared[0]['listing_id']}~2"] == products[one] == own[one]["product_id"]
    assert products[f"{two}~2"] != products[two]
    merged = {f"{shared[0]['listing_id']}~2", one}
    assert all(products[x] == own[x]["product_id"] for x in own.keys() - merged)
    pictures = {x.listing_id: x.read_image_bytes() for x in labelled.listings}
    theirs_by_id = {x["listing_id"]: x for x in theirs}
    for x in shared:
        kept = (other / theirs_by_id[x["listing_id"]]["image"]).read_bytes()
        assert pictures[f"{x['listing_id']}~2"] == kept
    rows = [x for x in read_csv(out / "review.csv") if x["decision"]]
    assert [(x["left_id"], x["decision"]) for x in rows] == [(one, "same"), (two, "different")]
    cli.main([str(x) for x in [*arguments, out / "review.csv"]])  # Again, from its own review.


def decide(out, planted):
    rows = read_csv(out / "review.csv")
    for x, said in ((planted[0], "same"), (planted[1], "same"), (planted[2], "different")):
        rows.append({"left_id": x[0], "right_id": x[1], "decision": said})
    with (out / "review.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_decisions_become_a_catalogue_to_train_on(run, shop, planted, found, capsys):
    _, out = found
    decide(out, planted)
    with pytest.raises(ConfigError, match="has decisions, which would be lost"):
        matched(run, shop, out)
    arguments = ["match", "--run", run.folder, "--catalogue", shop, "--out", out]
    arguments += ["--system", "infonce", "--precision", 0.6, "--neighbours", 8]
    arguments += ["--decisions", out / "review.csv"]
    cli.main([str(x) for x in arguments])
    assert "3 decisions: 2 products merged, 0 split, 2 listings" in capsys.readouterr().out
    labelled = load_catalogue(out / "labelled")
    products = dict(zip(labelled.column("listing_id"), labelled.column("product_id"), strict=True))
    before = {x["listing_id"]: x["product_id"] for x in records(shop)}
    for one, other in planted[:2]:
        assert products[other] == before[one]
    assert products[planted[2][1]] == "other-2"
    assert {k for k in before if before[k] != products[k]} == {x[1] for x in planted[:2]}
    kept = [x for x in read_csv(out / "review.csv") if x["decision"]]
    assert [x["decision"] for x in kept] == ["same", "same", "different"]
    cli.main([str(x) for x in arguments])  # Again, over its own output.


def test_what_is_not_its_own_is_not_replaced(run, shop, found):
    _, out = found
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        matched(run, shop, out)
    (out / "notes.txt").unlink()
    (out / "match.json").write_text("{}")
    with pytest.raises(ConfigError, match="not written by `afmrl match`"):
        matched(run, shop, out)


def test_a_killed_call_is_continued(run, shop, tmp_path, monkeypatch):
    from afmrl_jax.runs import matched as command

    def killed(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(command, "find_matches", killed)
        with pytest.raises(KeyboardInterrupt):
            matched(run, shop, out)
    assert not (out / "pairs.csv").exists()
    assert matched(run, shop, out)["finished"]


def test_a_precision_out_of_reach_accepts_nothing(run, shop, tmp_path, monkeypatch, capsys):
    from afmrl_jax.runs import match as finding

    monkeypatch.setattr(finding, "threshold_for", lambda *_: None)
    about = matched(run, shop, tmp_path / "out")
    assert about["found"]["accepted"] == about["found"]["clusters"] == 0
    assert about["test"]["precision"] is None
    assert "no pair is accepted" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"precision": 1}, {"lowest": 0}, {"neighbours": 0}])
def test_settings_are_checked(options):
    with pytest.raises(ConfigError):
        MatchSettings(**options)


def test_too_few_held_out_products_are_named(written_run, shop, tmp_path):
    with pytest.raises(CatalogueError, match=r"held-out listings have .* hold out more"):
        matched(FinishedRun(written_run), shop, tmp_path / "out")
