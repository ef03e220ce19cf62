"""What the built package says of itself, and what lies in it; nothing is built here."""

import runpy
import tomllib
from pathlib import Path

import pytest

import afmrl_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (
    "# A\n\n[![x](docs/x.png)](docs/y.md)\n![x](docs/x.png)\n[page](docs/y.md), [web](https://z)\n"
)


@pytest.fixture(scope="module")
def long_description():
    return runpy.run_path(str(ROOT / "setup.py"))["long_description"]


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "afmrl_jax.__version__"
    assert afmrl_jax.__version__.count(".") == 2


def test_every_licence_of_the_pictures_is_declared():
    expression = PROJECT["project"]["license"].split(" AND ")
    assert expression == ["Apache-2.0", "CC-BY-3.0", "CC-BY-3.0-US", "CC0-1.0"]
    for name in PROJECT["project"]["license-files"]:
        assert (ROOT / name).is_file()
    told = (ROOT / "afmrl_jax" / "data" / "furniture" / "ATTRIBUTION.md").read_text()
    heads = {x.partition(": [")[2].partition("]")[0] for x in told.splitlines() if "## " in x}
    assert heads == {"CC0 1.0", "CC BY 3.0", "CC BY 3.0 US"}


def test_data_files_of_the_package_are_there():
    for package, names in PROJECT["tool"]["setuptools"]["package-data"].items():
        for name in names:
            assert list(ROOT.joinpath(*package.split(".")).glob(name)), (package, name)


def test_pictures_are_shown_from_an_address(long_description):
    text = long_description(README, "https://host/raw/")
    assert "![x](https://host/raw/docs/x.png)\n" in text
    assert "page, [web](https://z)" in text
    assert "](docs/" not in text


def test_without_an_address_pictures_are_left_out(long_description):
    text = long_description(README)
    assert "![" not in text
    assert text.startswith("# A\n\n")
    assert "page, [web](https://z)" in text


def test_the_readme_has_no_link_into_the_repository_left(long_description):
    text = long_description((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "](docs/" not in text
    assert "](experiments/" not in text
