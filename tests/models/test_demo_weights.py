"""The weights that come with the package: whole, small, and of one tokenizer."""

import json

import pytest

from afmrl_jax.config import RunConfig
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.marketplace.world import VISIBLE
from afmrl_jax.errors import ConfigError
from afmrl_jax.models import demo_weights
from afmrl_jax.models.demo_weights import HERE, weights_folder
from afmrl_jax.models.families import ROLES
from afmrl_jax.models.huggingface.folder import load_model

LIMIT = 16_000_000
"""Bytes of both folders."""


@pytest.mark.parametrize("role", ["embedder", "generator"])
def test_a_folder_is_whole_and_says_what_it_is(role):
    folder = weights_folder("demo", role)
    architecture, params = load_model(folder)
    assert architecture.config.family == ROLES[role]
    assert set(params) == set(architecture.shapes)
    tokenizer = BpeTokenizer.load(folder)
    assert architecture.config.text.vocab_size == tokenizer.vocab_size
    assert architecture.config.image_token_id == tokenizer.image_pad_id
    # The demo cuts pictures as the weights know them.
    image = RunConfig.demo().image
    assert architecture.config.vision.patch_size == image.patch_size
    assert architecture.config.vision.merge_size == image.merge_size
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0")


def test_both_read_and_write_the_same_tokens_and_every_word():
    one, other = (
        json.loads((weights_folder("demo", role) / "tokenizer.json").read_text(encoding="utf-8"))
        for role in ("embedder", "generator")
    )
    assert one == other
    tokenizer = BpeTokenizer.load(weights_folder("demo", "embedder"))
    for text in ("type: dress; neckline: v-neck", "größe 38, çà et là", "日本 \U0001f457"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_card_has_every_visible_attribute():
    card = (HERE / "generator" / "README.md").read_text(encoding="utf-8")
    for key in VISIBLE:
        assert f"\n| {key} | " in card


def test_together_they_stay_small():
    assert sum(x.stat().st_size for x in HERE.rglob("*") if x.is_file()) < LIMIT


def test_other_names(tmp_path, monkeypatch):
    assert weights_folder(None, "embedder") is None
    assert weights_folder("random", "embedder") is None
    assert weights_folder(str(tmp_path), "generator") == tmp_path
    monkeypatch.setattr(demo_weights, "HERE", tmp_path)
    with pytest.raises(ConfigError, match=r"install the wheel again, or give --generator\.weights"):
        weights_folder("demo", "generator")
