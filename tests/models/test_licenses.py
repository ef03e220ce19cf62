"""The model that weights came from, and its license: by card, by folder, by size."""

import re
from pathlib import Path

import pytest

from afmrl_jax.models import licenses
from afmrl_jax.models.licenses import APACHE, QWEN, RESEARCH, License, origin, published_license
from afmrl_jax.models.qwen_vl.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs" / "pretrained.md"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen/Qwen3-VL-2B-Instruct", APACHE),
        ("Qwen3-VL-Embedding-8B", APACHE),
        ("Qwen/Qwen2.5-VL-3B-Instruct", RESEARCH),
        ("Qwen2.5-VL-72B-Instruct-AWQ", QWEN),
        ("Qwen2.5-VL-3Billion", None),
        ("my-embedder", None),
    ],
)
def test_a_published_name_has_a_license_with_any_suffix(name, found):
    assert published_license(name) == found


def test_every_published_size_has_its_license_and_the_docs_say_the_same():
    published = {x for x in PRESETS if x.startswith("qwen")}
    assert set(licenses.PRESETS) == published
    rows = re.findall(r"^\| (Qwen[^|]+) \| (\S+) \| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
    named = {x: (license_, allows) for names, license_, allows in rows for x in names.split(", ")}
    assert {licenses.PRESETS[x] for x in published} <= set(named)
    for model, (identifier, allows) in named.items():
        found = published_license(model)
        assert (str(found), found.allows) == (identifier, allows), model


def test_a_card_beside_the_weights_counts_before_the_table(tmp_path):
    folder = tmp_path / "Qwen2.5-VL-3B-Instruct"
    folder.mkdir()
    assert origin(folder).license == RESEARCH
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Words\n")
    found = origin(folder)
    assert (found.model, found.license, found.on_hub) == (
        "Qwen/Qwen2.5-VL-3B-Instruct",
        License("mit"),
        True,
    )
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: qwen\n---\n")
    assert origin(folder).license == QWEN


@pytest.mark.parametrize(
    "card",
    [
        "no front matter",
        "---\n- a\n- list\n---\n",
        "---\nlicense: [mit]\n---\n",
        '---\nlicense: "mit\\n---\\nelse: here"\n---\n',
        "---\n{broken\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
    ],
)
def test_a_card_that_states_none_is_passed_over(tmp_path, card):
    (tmp_path / "README.md").write_text(card)
    assert origin(tmp_path).license is None
    assert "license unknown" in str(origin(tmp_path))


def test_the_hub_cache_has_the_name_in_its_path(tmp_path):
    folder = tmp_path / "models--Qwen--Qwen3-VL-4B-Instruct" / "snapshots" / "0a1b"
    found = origin(folder)
    assert (found.model, found.license, found.on_hub) == ("Qwen/Qwen3-VL-4B-Instruct", APACHE, True)
    assert str(found).startswith("Qwen/Qwen3-VL-4B-Instruct: apache-2.0 (use")
