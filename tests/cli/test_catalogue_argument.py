"""`catalogue-check` and `catalogue-convert` take --catalogue, or the bare name."""

import json
from pathlib import Path

import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.testing import write_badge_catalogue


@pytest.mark.parametrize("named", [True, False])
def test_a_catalogue_is_named_either_way(named, badges, tmp_path, capsys):
    given = ["--catalogue", str(badges)] if named else [str(badges)]
    cli.main(["catalogue-check", *given])
    assert "120 listings of 30 products" in capsys.readouterr().out
    cli.main(["catalogue-convert", *given, "--out", str(tmp_path / "store")])
    assert "120 listings of 30 products" in capsys.readouterr().out


def test_options_may_come_before_the_bare_name(badges, capsys):
    cli.main(["catalogue-check", "--as-json", str(badges)])
    assert '"listings": 120' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "complaint"),
    [((), "name the catalogue"), (("a", "--catalogue", "b"), "two catalogues are given, b and a")],
)
def test_it_is_named_once(given, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["catalogue-check", *given])
    assert caught.value.code == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_catalogue_says_does_not_control_the_terminal(tmp_path, capsys, as_json):  # S9
    folder = write_badge_catalogue(tmp_path / "shop\x1b[2J")
    path = folder / "listings.jsonl"
    bad = {"listing_id": "a\x1b]0;own\x07\u202e", "product_id": "p", "title": "t", "image": "\x9b"}
    path.write_text(path.read_text() + json.dumps(bad) + "\n")
    arguments = ["--as-json"] if as_json else []
    with pytest.raises(SystemExit):
        cli.main(["catalogue-check", str(folder), *arguments])
    told = capsys.readouterr().out
    assert "own" in told
    assert not set(told) & set("\x1b\x07\u202e\x9b")
    if as_json:
        assert any("problem" in json.loads(line) for line in told.splitlines())


def test_the_marketplace_is_drawn_beforehand_or_into_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AFMRL_MARKETPLACE_CACHE", str(tmp_path / "cache"))
    sizes = [f"--marketplace.{x}-families={n}" for x, n in (("distill", 1), ("train", 1))]
    sizes += ["--marketplace.reward-families=3", "--marketplace.test-families=2"]
    cli.main(["catalogue-draw", *sizes])
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[:3] == ["fine", "ideal", "100.00"]
    out = tmp_path / "mine"
    cli.main(["catalogue-draw", *sizes, "--out", str(out)])
    drawn = Path(said[-1])
    assert (out / "listings.parquet").read_bytes() == (drawn / "listings.parquet").read_bytes()
    cli.main(["catalogue-check", str(out)])
    assert "0 error(s), 0 warning(s)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["catalogue-draw", *sizes, "--out", str(out)])
    assert "mine" in capsys.readouterr().err
