"""`catalogue-check` and `catalogue-convert` take --catalogue, or its bare name."""

import pytest

from afmrl_jax.cli import main as cli


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
